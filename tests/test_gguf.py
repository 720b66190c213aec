"""The header reader against the corpus, the real model, the ``gguf`` package and mutations of all of them."""

import json
import math
import os
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kawai_tools.errors import MalformedGguf, NotAModel
from kawai_tools.gguf import (
    FILE_TYPES,
    GGML_TYPES,
    MAX_ENTRIES,
    MAX_STRINGS,
    MAX_TENSORS,
    MAX_TEXT,
    VALUE_TYPES,
    ArrayInfo,
    Header,
    read_header,
    read_header_fd,
    sniff,
)
from tests import samples
from tests.samples import BROKEN, F32, NOT_GGUF, Entry, Tensor, Typed, array, entry, gguf, tensor, tiny_gguf

MEMORY_LIMIT = 256 << 20
SECONDS = 10  # what the worst file may take; it takes below 1 on an idle machine

READ_ALL = """
import json, pathlib, resource, sys, time
from kawai_tools.errors import KawaiError
from kawai_tools.gguf import read_header
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
answers = {}
for path in pathlib.Path(sys.argv[2]).iterdir():
    started = time.monotonic()
    try:
        code = "header" if read_header(path) else ""
    except KawaiError as error:
        code = error.code
    answers[path.name] = [code, time.monotonic() - started]
print(json.dumps(answers))
"""


def read(data: bytes, size: int | None = None, *, complete: bool = True) -> Header:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        return read_header_fd(file.fileno(), size, complete=complete)


def metadata(*entries: bytes) -> dict[str, object]:
    return dict(read(gguf((samples.ARCHITECTURE, *entries))).metadata)


@pytest.fixture(scope="session")
def model(real_model: Path) -> Path:
    return real_model


class TestValid:
    def test_tiny(self) -> None:
        data = tiny_gguf(name="A", context_length=4096, file_type=15, chat_template="{{ 1/0 }}")
        header = read(data)
        assert header.version == 3
        assert not header.big_endian
        assert header.architecture == "llama"
        assert header.name == "A"
        assert header.context_length == 4096
        assert header.quantization == "Q4_K_M"
        assert header.chat_template == "{{ 1/0 }}"
        assert header.tensor_count == 2
        assert header.parameters == 32 * 4 + 32
        assert header.tensor_types == {"F32": 2}
        assert header.data_offset % 32 == 0
        assert header.required_size == header.file_size == len(data)
        assert (header.split_no, header.split_count) == (None, None)
        assert not header.is_projection
        assert not header.is_vocabulary

    @pytest.mark.parametrize(("version", "order"), [(2, "<"), (3, "<"), (3, ">")])
    def test_versions_and_byte_orders_say_the_same(self, version: int, order: str) -> None:
        extra: dict[str, Entry] = {"a": 1 << 40, "b": -5, "c": 0.5, "d": ["x", "yz"], "e": True}
        header = read(tiny_gguf(version=version, order=order, extra=extra))
        assert (header.version, header.big_endian) == (version, order == ">")
        same = msgspec.structs.replace(header, version=3, big_endian=False)
        assert same == read(tiny_gguf(extra=extra))

    def test_keys_keep_their_order_and_types(self) -> None:
        found = metadata(
            entry("z", 1), entry("a", value=True), entry("m", 0.5), entry("k", "v"), entry("i", -1)
        )
        assert list(found.items())[1:] == [("z", 1), ("a", True), ("m", 0.5), ("k", "v"), ("i", -1)]
        assert [type(value) for value in found.values()] == [str, int, bool, float, str, int]

    def test_every_scalar_type_at_its_limits(self) -> None:
        for kind, code in samples.CODES.items():
            for fill in (b"\0", b"\x7f", b"\xff"):
                payload = fill * struct.calcsize(f"<{code}") if kind != samples.BOOL else b"\1"
                (expected,) = struct.unpack(f"<{code}", payload)
                found = metadata(entry("key", Typed(kind, payload)))["key"]
                assert found == expected or (math.isnan(expected) and isinstance(found, float))
                assert type(found) is type(expected)

    @pytest.mark.parametrize(
        "text", ["\x1b[31mred\x07", "\u202eevil\u2066", "nul\0inside", "", "日本語 🦙", "\r\n\t"]
    )
    def test_strings_stay_as_they_are(self, text: str) -> None:
        assert read(tiny_gguf(name=text)).name == text
        assert metadata(entry(text, "value"))[text] == "value"

    def test_bytes_that_are_no_utf8_are_replaced(self) -> None:
        found = metadata(entry("key", Typed(samples.STRING, samples.string(b"a\xff\xed\xa0\x80b"))))["key"]
        assert found == "a����b"
        assert msgspec.json.encode(found)

    def test_arrays_are_counted_not_kept(self) -> None:
        for kind, (name, code) in VALUE_TYPES.items():
            if code:
                found = metadata(entry("key", array(kind, 7, bytes(7 * struct.calcsize(f"<{code}")))))
                assert found["key"] == ArrayInfo(name, 7)
        assert metadata(entry("key", ["a", "", "c" * 300]))["key"] == ArrayInfo("string", 3)
        assert metadata(entry("key", array(samples.STRING, 0)))["key"] == ArrayInfo("string", 0)

    def test_short_arrays_of_integers_are_kept_beside(self) -> None:
        signed = array(samples.INT32, 2, struct.pack("<ii", -1, 5))
        entries = [
            entry("heads", [8, 0, 4]),
            entry("signed", signed),
            entry("flags", [True, False]),
            entry("none", array(samples.UINT32, 0)),
            entry("most", array(samples.UINT8, 1024, bytes(1024))),
            entry("long", array(samples.UINT8, 1025, bytes(1025))),
            entry("floats", [0.5]),
            entry("words", ["a"]),
            entry("one", 8),
        ]
        header = read(gguf((samples.ARCHITECTURE, *entries)))
        assert header.metadata["heads"] == ArrayInfo("uint32", 3)
        assert header.numbers("heads") == (8, 0, 4)
        assert header.numbers("signed") == (-1, 5)
        assert header.numbers("flags") == (1, 0)
        assert header.numbers("none") == ()
        assert header.numbers("most") == (0,) * 1024
        assert [header.numbers(key) for key in ("long", "floats", "words", "one", "missing")] == [None] * 5

    def test_sizes_of_blocks_and_of_what_is_beside_them(self) -> None:
        tensors = [
            ("token_embd.weight", (32, 4), samples.Q8_0),
            ("blk.0.attn_q.weight", (32, 2), F32),
            ("blk.0.attn_k.weight", (32,), samples.F16),
            ("blk.17.ffn_up.weight", (32,), F32),
            ("blk.99999.huge.weight", (32,), F32),
            ("blk.x.weight", (32,), F32),
            ("v.blk.0.weight", (32,), F32),
        ]
        header = read(tiny_gguf(tensors=tensors))
        assert header.block_sizes == {0: 2 * 128 + 64, 17: 128}
        others = ("blk.99999.huge.weight", "blk.x.weight", "v.blk.0.weight")
        assert header.tensor_sizes == {"token_embd.weight": 4 * 34, **dict.fromkeys(others, 128)}
        assert header.tensor_bytes == 136 + 256 + 64 + 4 * 128
        many = read(tiny_gguf(tensors=[(f"t{number}", (32,), F32) for number in range(1000)]))
        assert len(many.tensor_sizes) == 256
        assert many.tensor_bytes == 1000 * 128

    def test_sizes_of_what_is_multiplied_by(self) -> None:
        tensors = [
            ("token_embd.weight", (32, 4), samples.Q8_0),
            ("position_embd.weight", (32, 4), F32),
            ("blk.0.attn_q.weight", (32, 2), samples.Q8_0),
            ("blk.0.ffn_up_exps.weight", (32, 2, 3), samples.Q8_0),
            ("blk.0.attn_k_b.weight", (32, 2, 3), samples.Q8_0),
            ("blk.0.attn_norm.weight", (32,), F32),
            ("output.weight", (32, 4), samples.F16),
        ]
        header = read(tiny_gguf(tensors=tensors))
        assert header.matrix_sizes == {"Q8_0": 2 * 34 + 6 * 34, "F16": 256}
        assert header.embedding_type == "Q8_0"
        assert read(tiny_gguf(tensors=[("other", (32,), F32)])).embedding_type is None

    @pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 1 << 12, (1 << 20) - 9, 1 << 20, 3 << 20])
    def test_strings_across_the_windows_of_the_reader(self, length: int) -> None:
        for before in range(0, 17, 4):
            words = ["x" * before, "y" * length, "", "z", "y" * length]
            found = metadata(entry("words", words), entry("after", 7), entry("long", "w" * length))
            assert found["words"] == ArrayInfo("string", 5)
            assert found["after"] == 7
            assert found["long"] == "w" * length

    def test_shards(self) -> None:
        first, second = (read(tiny_gguf(split=(number, 2))) for number in (0, 1))
        assert (first.split_no, first.split_count, first.architecture) == (0, 2, "llama")
        assert (second.split_no, second.split_count, second.architecture) == (1, 2, None)
        assert second.quantization == "F32"
        assert second.context_length is None

    def test_first_shard_without_tensors_is_no_vocabulary(self) -> None:
        header = read(tiny_gguf(split=(0, 2), tensors=(), file_type=15))
        assert not header.is_vocabulary
        assert header.quantization == "Q4_K_M"

    def test_vocabulary(self) -> None:
        data = tiny_gguf(tensors=(), extra={"tokenizer.ggml.tokens": ["a", "b"]})
        header = read(data)
        assert header.is_vocabulary
        assert header.quantization is None
        assert header.main_type is None
        assert header.parameters == 0
        assert header.required_size == len(data)

    def test_projection(self) -> None:
        header = read(tiny_gguf(projection=True))
        assert header.is_projection
        assert header.architecture == "clip"
        assert read(tiny_gguf(extra={"general.type": "mmproj"})).is_projection

    @pytest.mark.parametrize("file_type", [None, 4, 9999, "Q4_K_M", -1])
    def test_quantization_without_a_known_file_type_is_that_of_most_parameters(
        self, file_type: int | str | None
    ) -> None:
        tensors: list[Tensor] = [(f"norm.{number}", (32,), samples.F32) for number in range(9)]
        tensors += [("big", (512, 4), samples.Q4_K), ("small", (32, 4), samples.Q8_0)]
        extra = {} if file_type is None else {"general.file_type": file_type}
        header = read(tiny_gguf(file_type=None, tensors=tensors, extra=extra))
        assert header.quantization == "Q4_K"
        assert header.tensor_types == {"F32": 9, "Q4_K": 1, "Q8_0": 1}

    @pytest.mark.parametrize("alignment", [8, 64, 4096, 1 << 20])
    def test_alignments(self, alignment: int) -> None:
        header = read(tiny_gguf(extra={"general.alignment": alignment}))
        assert header.data_offset % alignment == 0

    def test_scalar_tensor(self) -> None:
        assert read(tiny_gguf(tensors=(("scalar", (), samples.F32),))).parameters == 1

    def test_properties_ignore_values_of_other_types(self) -> None:
        extra: dict[str, Entry] = {
            "general.name": 5,
            "llama.context_length": True,
            "split.count": "two",
            "general.type": 1.5,
        }
        header = read(tiny_gguf(extra=extra))
        assert (header.name, header.context_length, header.split_count) == (None, None, None)

    def test_json_round_trip(self) -> None:
        header = read(tiny_gguf(extra={"a": [1, 2], "b": 0.5, "c": (1 << 64) - 1}))
        assert msgspec.json.decode(msgspec.json.encode(header), type=Header) == header

    def test_samples_are_deterministic_and_written(self, tmp_path: Path) -> None:
        path = tmp_path / "a.gguf"
        assert tiny_gguf(path) == tiny_gguf() == path.read_bytes()


class TestArriving:
    def test_tensors_may_be_missing(self) -> None:
        data = tiny_gguf()
        whole = read(data)
        part = read(data[: whole.data_offset], complete=False)
        assert part == msgspec.structs.replace(whole, file_size=whole.data_offset)
        with pytest.raises(MalformedGguf, match=f"{len(data) - whole.data_offset} of the {len(data)} bytes"):
            read(data[: whole.data_offset])

    def test_no_byte_past_the_given_size_is_believed(self) -> None:
        data = tiny_gguf(tensors=())
        assert read(data, len(data)) == read(data)
        for size in range(len(data)):
            with pytest.raises(MalformedGguf):
                read(data, size, complete=False)

    def test_file_shorter_than_its_size_says(self) -> None:
        with pytest.raises(MalformedGguf, match="became shorter"):
            read(tiny_gguf(tensors=())[:-1], 1 << 20)


class TestBroken:
    @pytest.mark.parametrize("what", BROKEN)
    def test_is_refused(self, what: str) -> None:
        with pytest.raises(MalformedGguf) as caught:
            read(BROKEN[what]())
        assert caught.value.hint
        assert len(caught.value.message) < 300

    @pytest.mark.parametrize("what", NOT_GGUF)
    def test_is_no_model(self, what: str) -> None:
        with pytest.raises(NotAModel) as caught:
            read(NOT_GGUF[what])
        kind = {"web page after blanks": "web page", "XML": "text"}.get(what, what)
        assert f"{kind}, not a model" in caught.value.message
        with pytest.raises(NotAModel):
            sniff(NOT_GGUF[what])

    def test_every_truncation(self) -> None:
        data = tiny_gguf(extra={"words": ["a", "bc"], "numbers": [1, 2, 3]})
        for length in range(len(data)):
            with pytest.raises(MalformedGguf):
                read(data[:length])

    def test_truncations_of_the_real_header(self, model: Path) -> None:
        with model.open("rb") as file:
            header = read_header_fd(file.fileno())
            points = [*range(200), *range(200, header.data_offset, 17_389), header.data_offset]
            points += [header.data_offset - 60, header.required_size - 1]
            for size in points:
                with pytest.raises(MalformedGguf):
                    read_header_fd(file.fileno(), size)

    @pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is not kept elsewhere")
    def test_time_and_memory(self, tmp_path: Path) -> None:
        for number, (what, make) in enumerate(BROKEN.items()):
            (tmp_path / f"malformed_gguf {number} {what}".replace("/", "-")).write_bytes(make())
        for what, content in NOT_GGUF.items():
            (tmp_path / f"not_a_model {what}").write_bytes(content)
        write_largest(tmp_path)
        command = [sys.executable, "-c", READ_ALL, str(MEMORY_LIMIT), str(tmp_path)]
        answers = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=120).stdout)
        assert len(answers) == len(BROKEN) + len(NOT_GGUF) + 6
        assert {what: code for what, (code, _) in answers.items() if code != what.split()[0]} == {}
        assert {what: seconds for what, (_, seconds) in answers.items() if seconds > SECONDS} == {}


def write_largest(folder: Path) -> None:
    """Write files that are just within the limits, and so the worst that will be read to their end."""
    strings = entry("strings", array(samples.STRING, MAX_STRINGS, bytes(8 * MAX_STRINGS)))
    keys = [entry(f"key {number}", 0) for number in range(MAX_ENTRIES - 1)]
    tensors = [tensor(f"tensor {number}", offset=128 * number) for number in range(MAX_TENSORS)]
    text = entry("text", "🦙" + "x" * (MAX_TEXT - 64))  # one such character, and each takes four bytes
    steps = array(samples.STRING, 256, (struct.pack("<Q", 1 << 20) + bytes(1 << 20)) * 256)
    (folder / "header strings").write_bytes(gguf((samples.ARCHITECTURE, strings)))
    (folder / "header keys").write_bytes(gguf((samples.ARCHITECTURE, *keys)))
    (folder / "header tensors").write_bytes(
        gguf((samples.ARCHITECTURE,), tensors, data=bytes(128 * MAX_TENSORS))
    )
    (folder / "header text").write_bytes(gguf((samples.ARCHITECTURE, text)))
    (folder / "header steps").write_bytes(gguf((samples.ARCHITECTURE, entry("steps", steps))))
    with (folder / "header sparse").open("wb") as file:
        file.write(gguf((samples.ARCHITECTURE, entry("numbers", array(samples.UINT8, 400 << 20)))))
        file.truncate(401 << 20)


class TestPaths:
    def test_file(self, tmp_path: Path) -> None:
        tiny_gguf(tmp_path / "a.gguf", name="B")
        assert read_header(tmp_path / "a.gguf").name == "B"
        assert read_header(str(tmp_path / "a.gguf")).name == "B"
        (tmp_path / "link").symlink_to("a.gguf")
        assert read_header(tmp_path / "link").name == "B"

    def test_errors_name_the_file_and_keep_it_from_the_terminal(self, tmp_path: Path) -> None:
        path = tmp_path / "bad\x1b[31m\udcff.gguf"
        path.write_bytes(b"<html>")
        with pytest.raises(NotAModel, match=r"^'bad\\x1b\[31m\\udcff.gguf': a web page") as caught:
            read_header(path)
        assert caught.value.hint

    def test_foreign_names_are_escaped_in_messages(self) -> None:
        with pytest.raises(MalformedGguf) as caught:
            read(gguf((samples.ARCHITECTURE, *[entry("\x1b]0;\u202e" + "k" * 999, 1)] * 2)))
        assert caught.value.message.isprintable()
        assert len(caught.value.message) < 200

    def test_fifo(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(MalformedGguf, match="'fifo': a FIFO, not a file"):
            read_header(tmp_path / "fifo")

    def test_pipe_and_directory_as_descriptors(self, tmp_path: Path) -> None:
        for fd in (*os.pipe(), os.open(tmp_path, os.O_RDONLY)):
            with pytest.raises(MalformedGguf, match="not a file"):
                read_header_fd(fd)
            os.close(fd)

    def test_directory(self, tmp_path: Path) -> None:
        with pytest.raises(MalformedGguf, match="a directory, not a file"):
            read_header(tmp_path)

    @pytest.mark.parametrize("path", ["/dev/zero", "/dev/null"])
    def test_device(self, path: str) -> None:
        with pytest.raises(MalformedGguf, match="a device, not a file"):
            read_header(path)

    def test_socket(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket")
            with pytest.raises(MalformedGguf, match="a socket, not a file"):
                read_header("socket")

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            read_header(tmp_path / "none")

    def test_descriptors_are_closed_and_positions_kept(self, tmp_path: Path) -> None:
        path = tmp_path / "a.gguf"
        tiny_gguf(path)
        (tmp_path / "bad").write_bytes(BROKEN["duplicate keys"]())
        with path.open("rb") as file:
            file.seek(7)
            read_header_fd(file.fileno())
            assert file.tell() == os.lseek(file.fileno(), 0, os.SEEK_CUR) == 7
        before = os.dup(0)
        read_header(path)
        with pytest.raises(MalformedGguf):
            read_header(tmp_path / "bad")
        after = os.dup(0)
        assert after == before + 1
        os.close(before)
        os.close(after)


class TestSniff:
    @pytest.mark.parametrize("length", [4, 5, 8, 100, 960])
    def test_gguf(self, length: int) -> None:
        sniff(tiny_gguf()[:length])

    @pytest.mark.parametrize(
        "start", [b"", b"G", b"GGU", b"GGML\3\0\0\0", b"PK\3\4", b"\x80\2}q\0", b"\xff" * 9]
    )
    def test_neither(self, start: bytes) -> None:
        with pytest.raises(MalformedGguf):
            sniff(start)


class TestFuzz:
    BASES = (
        tiny_gguf(extra={"words": ["a", "bc"], "numbers": [1, 2, 3], "yes": True}),
        tiny_gguf(order=">", chat_template="{{ x }}"),
        tiny_gguf(
            tensors=[("a", (256, 2), samples.Q4_K), ("b", (32,), samples.Q8_0), ("c", (), samples.F16)]
        ),
        tiny_gguf(split=(1, 3)),
    )
    INTERESTING = st.one_of(
        st.binary(min_size=1, max_size=12),
        st.sampled_from([0, 1, 7, 8, 9, 255, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1]).map(
            lambda number: struct.pack("<Q", number)
        ),
    )

    @given(
        base=st.sampled_from(BASES),
        changes=st.lists(st.tuples(st.integers(0, 400), INTERESTING), max_size=4),
        cut=st.none() | st.integers(0, 1000),
        complete=st.booleans(),
    )
    @settings(max_examples=2000, deadline=None)
    def test_mutations(
        self, base: bytes, changes: list[tuple[int, bytes]], cut: int | None, *, complete: bool
    ) -> None:
        data = bytearray(base)
        for position, replacement in changes:
            data[position : position + len(replacement)] = replacement
        check(bytes(data[:cut]), complete=complete)

    @given(st.binary(max_size=300), st.booleans())
    @settings(max_examples=500, deadline=None)
    def test_noise(self, noise: bytes, complete: bool) -> None:  # noqa: FBT001  # hypothesis names them
        check(noise, complete=complete)
        check(struct.pack("<4sIQQ", b"GGUF", 3, 1, 1) + noise, complete=complete)

    def test_mutations_of_the_real_header(self, model: Path) -> None:
        with model.open("rb") as file:
            start = file.read(2048)
        for position in range(len(start)):
            data = bytearray(start)
            data[position] ^= 0x81
            check(bytes(data), complete=False)


def check(data: bytes, *, complete: bool) -> None:
    """Hold that only a header that can be encoded, or one of two errors, comes out."""
    try:
        header = read(data, complete=complete)
    except (MalformedGguf, NotAModel) as error:
        refusal = error
    else:
        hold(header, data, complete=complete)
        return
    assert refusal.hint
    assert refusal.message.isprintable()


def hold(header: Header, data: bytes, *, complete: bool) -> None:
    assert msgspec.json.encode(header)
    assert header.file_size == len(data)
    assert header.required_size <= len(data) or not complete


class TestAgainstGgufPackage:
    def test_value_types(self) -> None:
        constants = pytest.importorskip("gguf.constants")
        assert {kind.value: kind.name.lower() for kind in constants.GGUFValueType} == {
            kind: name for kind, (name, _) in VALUE_TYPES.items()
        }

    def test_ggml_types(self) -> None:
        constants = pytest.importorskip("gguf.constants")
        theirs = {kind.value: (kind.name, *sizes) for kind, sizes in constants.GGML_QUANT_SIZES.items()}
        newer = {42}  # Q2_0: in ggml.h, not in gguf 0.19
        assert {number: GGML_TYPES.get(number) for number in theirs} == theirs
        assert GGML_TYPES.keys() - theirs.keys() <= newer

    def test_file_types(self) -> None:
        constants = pytest.importorskip("gguf.constants")
        theirs = {
            kind.value: kind.name.removeprefix("MOSTLY_").removeprefix("ALL_")
            for kind in constants.LlamaFileType
            if kind.name != "GUESSED"
        }
        newer = {41}  # Q2_0: in llama.h, not in gguf 0.19
        assert {number: FILE_TYPES.get(number) for number in theirs} == theirs
        assert FILE_TYPES.keys() - theirs.keys() <= newer

    @pytest.mark.slow
    def test_real_model(self, model: Path) -> None:
        compare(model)

    @pytest.mark.parametrize("endian", ["LITTLE", "BIG"])
    def test_written_by_it(self, tmp_path: Path, endian: str) -> None:
        compare(write_all(tmp_path / "all.gguf", endian))

    def test_split_written_by_it(self, tmp_path: Path) -> None:
        package, numpy = pytest.importorskip("gguf"), pytest.importorskip("numpy")
        writer = package.GGUFWriter(tmp_path / "model.gguf", "llama", split_max_tensors=2)
        writer.add_context_length(64)
        for number in range(5):
            writer.add_tensor(f"t{number}", numpy.zeros((2, 32), dtype=numpy.float32))
        finish(writer)
        headers = [compare(path) for path in sorted(tmp_path.iterdir())]
        assert [(header.split_no, header.split_count) for header in headers] == [(0, 3), (1, 3), (2, 3)]
        assert [header.architecture for header in headers] == ["llama", None, None]
        assert [header.tensor_count for header in headers] == [2, 2, 1]


def write_all(path: Path, endian: str) -> Path:
    """Write a value and an array of every type, and tensors of several, with the package's own writer."""
    package, numpy = pytest.importorskip("gguf"), pytest.importorskip("numpy")
    writer = package.GGUFWriter(path, "qwen3", endianess=package.GGUFEndian[endian])
    writer.add_name("Everything 🦙")
    writer.add_file_type(package.LlamaFileType.MOSTLY_Q8_0)
    examples: dict[str, bool | float | str] = {"bool": True, "string": "text", "float32": 0.5, "float64": 0.1}
    for name, _ in VALUE_TYPES.values():
        if name != "array":
            kind, value = package.GGUFValueType[name.upper()], examples.get(name, 100)
            writer.add_key_value(f"one.{name}", value, kind)
            writer.add_key_value(f"many.{name}", [value] * 3, package.GGUFValueType.ARRAY, kind)
    writer.add_tensor("f32", numpy.ones((3, 5), dtype=numpy.float32))
    writer.add_tensor("f16", numpy.ones((2, 2, 2), dtype=numpy.float16))
    writer.add_tensor("i64", numpy.ones(7, dtype=numpy.int64))
    quantized = package.quants.quantize(
        numpy.ones((4, 64), dtype=numpy.float32), package.GGMLQuantizationType.Q8_0
    )
    writer.add_tensor("q8", quantized, raw_dtype=package.GGMLQuantizationType.Q8_0)
    finish(writer)
    return path


def finish(writer: object) -> None:
    """Do the four steps of a ``GGUFWriter`` that make the file."""
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()


def compare(path: Path) -> Header:
    """Hold our reading of a file equal to the package's in all that ours keeps."""
    package = pytest.importorskip("gguf")
    theirs, ours = package.GGUFReader(path), read_header(path)
    fields = {name: field for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for name, field in fields.items():
        value = ours.metadata[name]
        if field.types[0] == package.GGUFValueType.ARRAY:
            assert value == ArrayInfo(field.types[-1].name.lower(), len(field.data))
            kept = len(field.data) <= 1024 and field.types[-1].name.lower() not in {
                "string",
                "float32",
                "float64",
            }
            assert ours.numbers(name) == (tuple(field.contents()) if kept else None)
        else:
            assert value == field.contents()
            assert type(value) is type(field.contents())
    assert ours.version == theirs.fields["GGUF.version"].contents()
    assert ours.tensor_count == len(theirs.tensors)
    assert ours.parameters == sum(tensor.n_elements for tensor in theirs.tensors)
    assert ours.data_offset == theirs.data_offset
    assert ours.required_size == max(tensor.data_offset + tensor.n_bytes for tensor in theirs.tensors)
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in theirs.tensors}
    blocks = {name: int(name.split(".")[1]) for name in sizes if name.startswith("blk.")}
    assert ours.tensor_bytes == sum(sizes.values())
    assert ours.tensor_sizes == {name: size for name, size in sizes.items() if name not in blocks}
    assert ours.block_sizes == {
        number: sum(sizes[name] for name, block in blocks.items() if block == number)
        for number in blocks.values()
    }
    names = [tensor.tensor_type.name for tensor in theirs.tensors]
    assert ours.tensor_types == {name: names.count(name) for name in names}
    return ours


def test_neither_numpy_nor_gguf_nor_a_mapping_is_imported() -> None:
    code = "import sys, kawai_tools.gguf; print({'gguf', 'numpy', 'mmap', 'asyncio'} & sys.modules.keys())"
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert answer.stdout == "set()\n"
