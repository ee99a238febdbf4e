"""Triton kernels, one file an op. Importing any of them needs Triton.

Each op's file holds the kernels, the function that says which inputs they take (``*_supports``) and the launchers,
which take and return tensors and know no autograd. What is launched is named ``*_kernel``; every such name is compiled
ahead of time by the tests.
"""
