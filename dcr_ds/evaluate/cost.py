"""Cost: what the evaluation of one model took."""

from pathlib import Path

from dcr_ds.files import read_json, write_json


class Cost:
    """Seconds and tokens of each part of a model's evaluation, on disk while it goes on.

    Seconds are rank 0's wall time without loading the model, written after every batch, so that those of a
    killed run count; a part made anew under other settings starts at nought. Rank 0 only.
    """

    def __init__(self, file: Path, device: str, world_size: int) -> None:
        self.file = file
        self.device = device
        self.world_size = world_size
        self.parts: dict[str, dict] = (read_json(file) or {}).get("parts", {})

    def spend(self, part: str, settings_hash: str, seconds: float) -> None:
        """Add seconds to a part."""
        entry = self._entry(part, settings_hash)
        entry["seconds"] += seconds
        self._write()

    def finish(self, part: str, settings_hash: str, **tokens: int) -> None:
        """Note how many tokens a part had in the end."""
        self._entry(part, settings_hash).update(tokens)
        self._write()

    def _entry(self, part: str, settings_hash: str) -> dict:
        if self.parts.get(part, {}).get("settings_hash") != settings_hash:
            self.parts[part] = {"settings_hash": settings_hash, "seconds": 0.0}
        return self.parts[part]

    def _write(self) -> None:
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
