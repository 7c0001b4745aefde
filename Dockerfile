# dcr-ds for GPU nodes. docs/cluster.md, "Containers", says how to build it and how to convert it for SLURM.
#
#   docker build -t dcr-ds .
#   docker build -t dcr-ds --build-arg VARIANT=devel --build-arg EXTRAS=gpu,qlora,eval,flash .
#
# PyTorch's wheels contain their own CUDA libraries; the host provides the driver. VARIANT=devel adds nvcc, which is
# needed to compile flash-attn.
ARG CUDA=12.8.1
ARG VARIANT=runtime

FROM nvidia/cuda:${CUDA}-${VARIANT}-ubuntu24.04 AS build
ARG EXTRAS=gpu,qlora,eval
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv python3-dev gcc g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/dcr-ds
ENV PATH=/opt/dcr-ds/bin:$PATH
WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE ./
COPY dcr_ds dcr_ds
COPY kernels kernels
COPY recipes recipes
COPY ds_configs ds_configs
COPY slurm slurm
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[${EXTRAS}]"

FROM nvidia/cuda:${CUDA}-${VARIANT}-ubuntu24.04
# gcc and the headers of Python: Triton compiles its launchers on the node
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-dev gcc libc6-dev openssh-client \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 dcr
COPY --from=build /opt/dcr-ds /opt/dcr-ds
ENV PATH=/opt/dcr-ds/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 10001
WORKDIR /home/dcr
CMD ["dcr-ds", "--help"]
