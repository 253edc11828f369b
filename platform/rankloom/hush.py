"""Keep libraries from talking over the output of a lane or a command."""

from __future__ import annotations

import logging
import warnings


def hush() -> None:
    """Silence the progress bars, warnings and chatter of the Hugging Face libraries and bitsandbytes."""
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(logging.CRITICAL)
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore")
