"""Choices of settings that are no files of their own, by name; those who work by them ask here."""

# how steps are run, with a line for `fastcat list engines`
ENGINES = {
    "eager": "operation by operation",
    "winograd": "3x3 convolutions by Winograd's algorithm, on a CPU; needs a C++ compiler",
    "compile": "frozen twins, on a GPU also the networks, compiled by Inductor; slow to start",
    "graph": "the whole step as one CUDA graph; needs a GPU",
    "compile+graph": "both",
}
# whose code updates the weights
SGDS = {"kernel": "our kernel, on a CPU torch", "apex": "FusedSGD of NVIDIA's apex, on a GPU"}
# what networks compute in, with the name of torch's type of their activations
PRECISIONS = {"fp32": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# how class folders with numbers for names are ordered: 0, 1, 10, 2 or 0, 1, 2, 10
CLASS_ORDERS = ("text", "number")
