"""What must be decided before the first test imports anything: modules of torch and transformers import Triton, which
settles then whether kernels are compiled or interpreted, and the hub's client whether it may ask."""

import importlib.util
import os

# No test fetches anything; asking a hub that cannot be reached takes its client half a minute.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Without Triton there is nothing to decide, and tests that need no torch are spared its import.
if "TRITON_INTERPRET" not in os.environ and importlib.util.find_spec("triton"):
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
