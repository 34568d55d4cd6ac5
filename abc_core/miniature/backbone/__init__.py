"""The tiny Qwen2-VL that stands for the paper's, trained from nothing."""
