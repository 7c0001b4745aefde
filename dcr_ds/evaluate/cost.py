"""What the evaluation of one model costs: seconds and tokens."""

from pathlib import Path

from dcr_ds.files import read_object, write_json


class Cost:
    """Seconds and tokens of each part of a model's evaluation, written to disk after every batch.

    Seconds are rank 0's wall time without loading the model, so they include those of killed runs; a part that is
    measured again under other settings starts from zero.

    Args:
        is_writer: whether this rank writes the file; only rank 0 does.
    """

    def __init__(self, file: Path, device: str, world_size: int, is_writer: bool = True) -> None:
        self.file = file
        self.device = device
        self.world_size = world_size
        self.is_writer = is_writer
        self.parts: dict[str, dict] = _parts(file) if is_writer else {}

    def spend(self, part: str, settings_hash: str, seconds: float) -> None:
        """Add seconds to a part."""
        entry = self._entry(part, settings_hash)
        entry["seconds"] += seconds
        self._write()

    def finish(self, part: str, settings_hash: str, **counts: int) -> None:
        """Record the final counts of a part, such as its tokens."""
        self._entry(part, settings_hash).update(counts)
        self._write()

    def _entry(self, part: str, settings_hash: str) -> dict:
        if self.parts.get(part, {}).get("settings_hash") != settings_hash:
            self.parts[part] = {"settings_hash": settings_hash, "seconds": 0.0}
        return self.parts[part]

    def _write(self) -> None:
        if not self.is_writer:
            return
        write_json(
            self.file,
            {
                "device": self.device,
                "ranks": self.world_size,
                "seconds": sum(part["seconds"] for part in self.parts.values()),
                "generated_tokens": sum(part.get("generated_tokens", 0) for part in self.parts.values()),
                "parts": self.parts,
            },
        )


def _parts(file: Path) -> dict[str, dict]:
    """The parts that an earlier run recorded; damaged ones are left out."""
    parts = read_object(file).get("parts")
    entries = parts.items() if isinstance(parts, dict) else ()
    return {name: part for name, part in entries if isinstance(part, dict) and _is_whole(part)}


def _is_whole(part: dict) -> bool:
    return isinstance(part.get("seconds"), int | float) and isinstance(part.get("generated_tokens", 0), int)
