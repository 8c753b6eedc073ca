"""Files that lie: code in pickles, bombs, cut-off files, and files that are something else."""

import argparse
import io
import os
import pathlib
import pickle
import re
import stat
import time
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import crate_jax
from crate_jax.convert import checkpoints, formats, inspection


class Evil:
    """Creates a marker file when unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


class TestCode:
    def check(self, path, marker):
        for read in (crate_jax.load, inspection.inspect):
            with pytest.raises(ValueError, match=r"refused") as raised:
                read(path)
            assert len(str(raised.value).splitlines()) == 1
        assert not marker.exists()

    def test_in_a_pytorch_file(self, torch, tmp_path, crate_state):
        marker = tmp_path / "marker"
        tensors = {k: torch.from_numpy(v) for k, v in crate_state().items()}
        for name, legacy in (("a.pth", False), ("b.pth", True)):
            torch.save(
                {"state_dict": tensors, "extra": Evil(marker)},
                tmp_path / name,
                _use_new_zipfile_serialization=not legacy,
            )
            self.check(tmp_path / name, marker)

    def test_in_a_plain_pickle(self, torch, tmp_path):
        for protocol in (2, 4, 5):
            (tmp_path / "a.pth").write_bytes(pickle.dumps(Evil(tmp_path / "m"), protocol))
            with pytest.raises(ValueError, match=r"refused|damaged"):
                crate_jax.load(tmp_path / "a.pth", heads=4)
            assert not (tmp_path / "m").exists()

    def test_in_an_archive_of_arrays(self, tmp_path):
        array = np.array([Evil(tmp_path / "marker")], dtype=object)
        np.savez(tmp_path / "a.npz", cls=array, allow_pickle=True)
        with pytest.raises(ValueError, match="Python objects, which are never unpickled"):
            crate_jax.load(tmp_path / "a.npz")
        assert not (tmp_path / "marker").exists()

    def test_a_command_line_beside_the_weights_is_inert(self, torch, tmp_path, crate_state):
        """DINO's and MAE's training checkpoints hold an argparse.Namespace."""
        tensors = {k: torch.from_numpy(v) for k, v in crate_state().items()}
        torch.save({"model": tensors, "args": argparse.Namespace(lr=1.0)}, tmp_path / "a.pth")
        assert crate_jax.load(tmp_path / "a.pth", heads=3).config.depth == 2


class TestBombs:
    def test_zip(self, tmp_path):
        for name, entry in (("a.pth", "archive/data.pkl"), ("a.npz", "cls.npy")):
            with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(entry, bytes(100 << 20))
            with pytest.raises(ValueError, match="claim to unpack to 104857600"):
                crate_jax.load(tmp_path / name)

    def test_header_that_claims_more_than_is_there(self, tmp_path):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)}
        )
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("cls.npy", header.getvalue())
        with pytest.raises(ValueError, match="an array claims 4398046511104 bytes"):
            crate_jax.load(tmp_path / "a.npz")

    def test_view_that_claims_more_than_is_stored(self, torch, tmp_path, crate_state):
        state = {k: torch.from_numpy(v) for k, v in crate_state().items()}
        state["pos_embedding"] = torch.zeros(1).expand(1, 10**6 + 1, 24)
        torch.save(state, tmp_path / "a.pth")
        with pytest.raises(ValueError, match="pos_embedding: refused, 24000024 elements"):
            crate_jax.load(tmp_path / "a.pth", heads=3)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth", ".pth.tar"])
def test_cut_off_files_give_one_clear_line(suffix, tmp_path, reference_files, request):
    if suffix.startswith(".pth"):
        request.getfixturevalue("torch")
    path, cut = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    source = checkpoints.read(reference_files / "crate_alpha_mini.npz", heads=4)
    checkpoints.save(source, path)
    data = path.read_bytes()
    for length in (9, 100, len(data) // 2, len(data) - 5):
        cut.write_bytes(data[:length])
        with pytest.raises(ValueError) as raised:
            crate_jax.load(cut, heads=4)
        assert len(str(raised.value).splitlines()) == 1
        assert str(cut) in str(raised.value)


def test_flipped_bytes_are_noticed_in_archives(tmp_path, reference_files):
    path = tmp_path / "a.npz"
    checkpoints.save(checkpoints.read(reference_files / "crate_mini.npz", heads=4), path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        crate_jax.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "an HTML page"),
        (b"\n  <html lang='en'>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a Git LFS pointer"),
        (b"learning rate 0.1\nfoo\n", "text that begins with 'learning rate 0.1'"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"\x1f\x8b\x08\x00\x00", "begins with bytes 1f 8b"),
    ],
)
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_something_else(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        crate_jax.load(tmp_path / name, heads=4)


def test_other_places(tmp_path):
    with pytest.raises(FileNotFoundError, match="found no such file"):
        crate_jax.load(tmp_path / "absent.pth")
    with pytest.raises(ValueError, match="expected a run's directory"):
        crate_jax.load(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("photo.jpg", b"x")
    with pytest.raises(ValueError, match=r"got a zip file of photo\.jpg"):
        crate_jax.load(tmp_path / "a.npz")


def test_other_networks(write, tmp_path):
    resnet = {"conv1.weight": np.zeros((64, 3, 7, 7), np.float32), "fc.weight": np.zeros((1, 2))}
    resnet |= {f"layer1.{i}.conv1.weight": np.zeros((4, 4, 1, 1), np.float32) for i in range(3)}
    with pytest.raises(ValueError, match=r"expected the weights of a CRATE.*got 5 tensors named"):
        crate_jax.load(write(resnet), heads=4)
    lines = inspection.inspect(write(resnet)).splitlines()
    assert any(re.match("family +unknown; 5 tensors named", line) for line in lines)


def test_only_an_optimiser(torch, tmp_path):
    state = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"optimizer": state, "epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="no tensors by name, only the entries optimizer, epoch"):
        crate_jax.load(tmp_path / "a.pth", heads=4)
    torch.save([torch.zeros(3)], tmp_path / "b.pth")
    with pytest.raises(ValueError, match="expected a dictionary of tensors, got list"):
        crate_jax.load(tmp_path / "b.pth", heads=4)


def test_foreign_metadata(tmp_path, crate_state):
    path = tmp_path / "a.safetensors"
    for text in ("not json", "[1]", '{"config": 3}'):
        safetensors.numpy.save_file(crate_state(), path, metadata={"crate_jax": text})
        with pytest.raises(ValueError, match="expected a declaration of this project"):
            crate_jax.load(path)


def test_writing_is_whole_or_not_at_all(tmp_path, reference_files, monkeypatch):
    source = checkpoints.read(reference_files / "crate_mini.npz", heads=4)
    target = tmp_path / "a.npz"
    target.write_bytes(b"before")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(source, target)
    assert target.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
    with pytest.raises(ValueError, match=r"expected a name ending in \.safetensors"):
        checkpoints.save(source, tmp_path / "a.onnx")


def test_without_pytorch_the_error_says_what_to_install(monkeypatch, reference_files, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ImportError, match=r"pip install 'crate-jax\[torch\]'"):
        crate_jax.load(reference_files / "crate_mini.pth.tar", heads=4)
    source = checkpoints.read(reference_files / "crate_mini.npz", heads=4)
    with pytest.raises(ImportError, match=r"writing a\.pth needs PyTorch"):
        checkpoints.save(source, tmp_path / "a.pth")
    assert not list(pathlib.Path(tmp_path).iterdir())


def test_formats_are_told_by_content(reference_files, tmp_path):
    source = checkpoints.read(reference_files / "crate_mini.npz", heads=4)
    checkpoints.save(source, tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").rename(tmp_path / "a.pth")
    assert formats.read(tmp_path / "a.pth").format == "safetensors"
    assert crate_jax.load(tmp_path / "a.pth").config.heads == 4


def archive_of(path, entries):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def npy_header(text):
    """Version 1.0 of the format, around any header."""
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode("latin-1")


class TestMalformed:
    """Each is one line, soon, and before values are read."""

    def refused(self, path, match, **declared):
        for read in (lambda: crate_jax.load(path, **declared), lambda: inspection.inspect(path)):
            with pytest.raises(ValueError, match=match) as raised:
                read()
            assert len(str(raised.value).splitlines()) == 1

    @pytest.mark.parametrize(
        "header",
        [
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -3)}",
            "{'descr': 'nonsense', 'fortran_order': False, 'shape': (2,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)",
            "{'descr': [('a', '<f4', (1e9,))], 'fortran_order': False, 'shape': ()}",
            "(" * 9000,
            "{'a': 1}",
            "\x00\xff" * 20,
        ],
    )
    def test_headers_of_arrays(self, header, tmp_path):
        path = archive_of(tmp_path / "a.npz", {"cls.npy": npy_header(header)})
        self.refused(path, r"a\.npz: expected plain arrays, got some damaged")

    def test_encrypted_archives(self, tmp_path):
        path = archive_of(tmp_path / "a.npz", {"cls.npy": npy_header("x") * 3})
        data = bytearray(path.read_bytes())
        for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            data[data.index(signature) + offset] |= 1
        path.write_bytes(data)
        self.refused(path, "encrypted")

    def test_deep_metadata(self, tmp_path, crate_state):
        path = tmp_path / "a.safetensors"
        metadata = {"crate_jax": '{"config": ' + "[" * 200_000}
        safetensors.numpy.save_file(crate_state(), path, metadata=metadata)
        self.refused(path, "expected a declaration of this project")
        header = b'{"a":' + b"[" * 100_000
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        self.refused(path, "damaged or cut off")

    @pytest.mark.parametrize(
        "text",
        [
            *("[]", "3", '{"config": []}', '{"config": {}, "run": 3}', '{"config": {}, "run": {}}'),
            '{"config": {}, "run": {"config": 3, "step": 1, "history": [], "scores": {}}}',
        ],
    )
    def test_metadata_of_something_else(self, text, tmp_path, crate_state):
        path = tmp_path / "a.safetensors"
        safetensors.numpy.save_file(crate_state(), path, metadata={"crate_jax": text})
        self.refused(path, "expected a declaration of this project")

    def test_an_index_of_nothing(self, tmp_path):
        (tmp_path / "a.json").write_text('{"weight_map": {}}')
        self.refused(tmp_path / "a.json", "got one that names none")

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_an_archive_with_a_name_twice(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            for _ in range(2):
                archive.writestr("cls.npy", npy_header("{}"))
        self.refused(tmp_path / "a.npz", "1 names stand in the archive more than once")

    @pytest.mark.parametrize("value", ["NaN", "1e999", '"x"', "[]", "{}"])
    def test_stored_numbers(self, value, tmp_path, crate_state):
        path = tmp_path / "a.safetensors"
        text = f'{{"config": {{"heads": 3, "lambd": {value}}}}}'
        safetensors.numpy.save_file(crate_state(), path, metadata={"crate_jax": text})
        with pytest.raises(ValueError, match="lambd: expected a") as raised:
            crate_jax.load(path)
        assert len(str(raised.value).splitlines()) == 1

    def test_no_file_at_all(self, tmp_path):
        os.mkfifo(tmp_path / "a.pth")
        self.refused(tmp_path / "a.pth", "expected a file, got a named pipe")
        (tmp_path / "zero.pth").symlink_to("/dev/zero")
        self.refused(tmp_path / "zero.pth", "expected a file, got a device")

    @pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x80\x02}", b"safetensors"])
    def test_sparse_files(self, start, tmp_path):
        path = tmp_path / "a.safetensors"
        if start == b"safetensors":
            header = '{"a":{"dtype":"F32","shape":[17179869184],"data_offsets":[0,68719476736]}}'
            start = len(header).to_bytes(8, "little") + header.encode()
        with path.open("wb") as file:
            file.write(start)
            file.truncate(len(start) + (64 << 30))
        begun = time.monotonic()
        self.refused(path, r"refused, 687\d+ bytes of which only \d+ are on the disk")
        assert time.monotonic() - begun < 5

    def test_layers_without_end(self, crate_state, write):
        state = crate_state()
        state["transformer.layers.999999999.1.fn.weight"] = np.zeros((24, 24), np.float32)
        with pytest.raises(ValueError, match="a number 999999999 among"):
            crate_jax.load(write(state), heads=3)

    def test_eight_bits(self, crate_state, tmp_path):
        state = {k: v.astype(ml_dtypes.float8_e4m3fn) for k, v in crate_state().items()}
        path = tmp_path / "a.safetensors"
        safetensors.numpy.save_file(state, path)
        with pytest.raises(ValueError, match=r"of 8 bits \(save them as bfloat16\): cls_token"):
            crate_jax.load(path, heads=3)
        assert "f8_e4m3" in inspection.inspect(path)


def test_names_from_a_file_do_not_reach_the_terminal_as_they_are(crate_state, write, tmp_path):
    escape = "\x1b[31mred\x07\r\n"
    state = crate_state() | {f"x{escape}": np.zeros(1, np.float32)}
    path = write(state)
    with pytest.raises(ValueError) as raised:
        crate_jax.load(path, heads=3)
    for text in (str(raised.value), inspection.inspect(path)):
        assert "\x1b" not in text
        assert "\r" not in text
        assert r"x\x1b[31mred\x07\r\n" in text
    other = write({escape: np.zeros(1, np.float32)}, "y.safetensors")
    assert r"\x1b[31mred" in inspection.inspect(other)
    assert "\x1b" not in inspection.inspect(other)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth", ".pth.tar"])
def test_the_same_weights_are_the_same_bytes(suffix, reference_files, tmp_path, request):
    if suffix.startswith(".pth"):
        request.getfixturevalue("torch")
    source = reference_files / "crate_mae_mini.npz"
    written = set()
    for place in ("a", "b"):
        for _ in range(2):  # the same name again, and elsewhere
            target = tmp_path / place / f"x{suffix}"
            checkpoints.save(checkpoints.read(source, heads=4), target)
            written.add(target.read_bytes())
    assert len(written) == 1


def test_others_may_read_what_is_written(reference_files, tmp_path):
    source = checkpoints.read(reference_files / "crate_mini.npz", heads=4)
    before = os.umask(0o022)
    try:
        for suffix in (".npz", ".safetensors"):
            checkpoints.save(source, tmp_path / f"x{suffix}")
            assert stat.S_IMODE((tmp_path / f"x{suffix}").stat().st_mode) == 0o644
    finally:
        os.umask(before)


def test_a_link_is_written_through(reference_files, tmp_path):
    source = checkpoints.read(reference_files / "crate_mini.npz", heads=4)
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "x.safetensors"
    link.symlink_to(tmp_path / "elsewhere" / "weights.bin")
    checkpoints.save(source, link)
    assert link.is_symlink()
    assert crate_jax.load(tmp_path / "elsewhere" / "weights.bin").config.heads == 4


def test_inspection_reads_no_values(torch, crate_state, tmp_path, monkeypatch):
    state = crate_state()
    safetensors.numpy.save_file(state, tmp_path / "x.safetensors")
    np.savez(tmp_path / "x.npz", **state)
    torch.save({k: torch.from_numpy(v) for k, v in state.items()}, tmp_path / "x.pth")
    load, mapped = torch.load, []

    def spy(*args, **options):
        mapped.append(options["mmap"])
        return load(*args, **options)

    def read(*_):
        raise AssertionError("a value was read")

    monkeypatch.setattr(torch, "load", spy)
    monkeypatch.setattr(formats, "_read_npy", read)
    monkeypatch.setattr(formats, "to_array", read)
    for name in ("x.safetensors", "x.npz", "x.pth"):
        assert f"{len(state)} float32" in inspection.inspect(tmp_path / name)
    assert mapped == [True]
