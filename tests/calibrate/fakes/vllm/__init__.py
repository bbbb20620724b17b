import os

#: FAKE_VLLM_VERSION chooses the version whose names are there
__version__ = os.environ.get("FAKE_VLLM_VERSION", "0.24.0")
MINOR = int(__version__.split(".")[1])
