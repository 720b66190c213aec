"""What a GGUF file says of itself."""

import msgspec

from kawai_tools.gguf.formats import FILE_TYPES

MAX_NUMBERS = 1024  # elements of an array that are kept: one a layer, twice what llama.cpp takes


class ArrayInfo(msgspec.Struct, frozen=True):
    """What is kept of an array: the name of its elements' type, and how many there are."""

    type: str
    length: int


Value = bool | int | float | str | ArrayInfo


class Header(msgspec.Struct, frozen=True):
    """What a GGUF file says of itself. Sizes and offsets are bytes.

    ``metadata`` is in the order of the file, its strings as they are (U+FFFD where they are no UTF-8):
    whoever shows them escapes them. ``required_size`` is the least size of a file that holds all tensors;
    ``tensor_types`` counts them by ggml type; ``main_type`` is the type that holds the most parameters.
    ``block_sizes`` are the bytes of the tensors ``blk.N.*`` by N, ``tensor_sizes`` those of the others by
    name (the first 256), ``tensor_bytes`` those of all. ``matrix_sizes`` are the bytes, by type, of what is
    multiplied by: matrices and stacks of experts, without embeddings; ``embedding_type`` is the type of the
    token embedding. ``arrays`` are the short ones of integers and bools.
    """

    version: int
    big_endian: bool
    metadata: dict[str, Value]
    tensor_count: int
    parameters: int
    data_offset: int
    required_size: int
    tensor_types: dict[str, int]
    main_type: str | None
    file_size: int
    block_sizes: dict[int, int]
    tensor_sizes: dict[str, int]
    tensor_bytes: int
    matrix_sizes: dict[str, int]
    embedding_type: str | None
    arrays: dict[str, tuple[int, ...]]

    @property
    def architecture(self) -> str | None:
        """``llama``, ``qwen3``, ``clip``...; None in the second and later shards."""
        return self.text("general.architecture")

    @property
    def kept(self) -> int:
        """Bytes of memory that it takes to remember this, about."""
        texts = sum(len(key) + len(value) for key, value in self.metadata.items() if isinstance(value, str))
        return texts + 200 * len(self.metadata) + 8 * sum(map(len, self.arrays.values()))

    @property
    def name(self) -> str | None:
        """The name its makers gave it."""
        return self.text("general.name")

    @property
    def context_length(self) -> int | None:
        """The context in tokens that the model was trained for."""
        return self.number(f"{self.architecture}.context_length")

    @property
    def is_projection(self) -> bool:
        """Whether this is the image or audio encoder that goes with a model, and no model itself."""
        return self.architecture == "clip" or self.text("general.type") == "mmproj"

    @property
    def is_vocabulary(self) -> bool:
        """Whether there are no tensors; the first shard of a split model may hold metadata only."""
        return self.tensor_count == 0 and (self.split_count or 1) == 1

    @property
    def quantization(self) -> str | None:
        """``Q4_K_M``, ``F16``...: what the file says, else the type of most parameters."""
        if self.is_vocabulary:
            return None
        file_type = self.number("general.file_type")
        return self.main_type if file_type is None else FILE_TYPES.get(file_type, self.main_type)

    @property
    def split_count(self) -> int | None:
        """How many shards the model is split into."""
        return self.number("split.count")

    @property
    def split_no(self) -> int | None:
        """Which of the shards this is, from 0."""
        return self.number("split.no")

    @property
    def chat_template(self) -> str | None:
        """A Jinja program of unknown origin: text to store and compare, never to render."""
        return self.text("tokenizer.chat_template")

    def text(self, key: str) -> str | None:
        """Return the string under ``key``; None if there is none or it is something else."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | None:
        """Return the natural number under ``key``; None if there is none or it is something else."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

    def numbers(self, key: str) -> tuple[int, ...] | None:
        """Return the integers (or bools, as 0 and 1) of the array under ``key``.

        None if there is none, if it is something else, or longer than 1024.
        """
        return self.arrays.get(key)
