"""Fused kernels in Triton: tensors in, tensors out; no configuration is known here.

Each file holds the mathematics, a torch reference in any precision, the kernel, and the function to call. The function runs the
kernel on a GPU (or in Triton's interpreter, TRITON_INTERPRET=1) and the reference elsewhere: `launch.runs_on` says which.
"""
