"""Errors a user can act on: every message says what was found, where, what was expected and what to do."""


class Invert3DError(Exception):
    """Base of every error this package raises on purpose."""


class FormatError(Invert3DError):
    """A splat file is not what it claims to be: truncated, oversized, empty, of another type, or full of NaN."""


class CameraError(Invert3DError):
    """A camera or a set of cameras cannot be used: wrong shape, no orthogonal set, degenerate pose."""


class RenderError(Invert3DError):
    """Splats and cameras cannot be rendered: mismatched shapes, unknown backend, no memory."""


class ModelError(Invert3DError):
    """A checkpoint is missing, incomplete or of an unknown layout."""


class TokenError(Invert3DError):
    """A token file, a placeholder in a prompt, or the room left in a prompt is wrong."""


class TrainingError(Invert3DError):
    """A token cannot be trained from these views with these settings, or a checkpoint does not belong to them."""


class StorageError(Invert3DError, OSError):
    """A file cannot be written: a full disk, a folder without permission, another process that works on it."""


def first_line(error: BaseException) -> str:
    """What an error says first, its kind if it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
