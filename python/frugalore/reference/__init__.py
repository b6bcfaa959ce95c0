"""The ops once more in plain torch: readable, slow, and the specification that the tests compare against.

A function here has the name, arguments and results of the one in :mod:`frugalore.ops`. Element-wise ops are
specified to the bit: the same float32 operations in the same order, none contracted.
"""
