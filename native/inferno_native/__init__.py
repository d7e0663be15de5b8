"""The hot paths of Inferno, compiled: model verification, rate buckets, text guards, batching, sampling.

Owns nothing but the base of its errors. Imports nothing of `inferno`.
"""


class NativeError(Exception):
    """Base of all errors that the native modules raise for bad input."""
