"""qsim: trace-driven simulation of quantized LLM serving, calibrated by measurements."""

__version__ = "0.1.0"
