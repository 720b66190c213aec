"""Counts the tokens of an answer that is passed on, without reading it.

llama.cpp tells its own figures at one end of an answer: ``usage`` or, in the last frame of a stream,
``timings``. Only these ends are looked at. A stream that was broken off has told none: there each frame that
was passed on counts as one token, which is how llama.cpp sends them.
"""

import re

_END = 4096
_PROMPT = re.compile(rb'(?<!\\)"(?:prompt_tokens|input_tokens|prompt_n)":\s*(\d{1,12})')
_MADE = re.compile(rb'(?<!\\)"(?:completion_tokens|output_tokens|predicted_n)":\s*(\d{1,12})')


class Tally:
    """What one answer came to."""

    def __init__(self) -> None:
        """Nothing has come."""
        self._pieces = 0
        self._start = b""
        self._end = b""

    def take(self, piece: bytes) -> int:
        """One more piece is passed on; the frames in it."""
        if not self._pieces:
            self._start = piece[:_END]
        frames = piece.count(b"\n\n") or 1
        self._pieces += frames
        self._end = (self._end + piece)[-_END:]
        return frames

    @property
    def is_between_frames(self) -> bool:
        """Whether the last frame of a stream has come whole."""
        return not self._end or self._end.endswith(b"\n\n")

    def counts(self, *, stream: bool) -> tuple[int, int]:
        """Tokens of the prompt, and tokens made."""
        prompt, made = self._told(_PROMPT), self._told(_MADE)
        return prompt or 0, made if made is not None else (self._pieces if stream else 0)

    def _told(self, pattern: re.Pattern[bytes]) -> int | None:
        found = pattern.findall(self._end) or pattern.findall(self._start)
        return int(found[-1]) if found else None
