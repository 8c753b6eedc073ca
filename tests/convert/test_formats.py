"""Files that lie: code in pickles, bombs, cut-off files, and files that are something else."""

import argparse
import io
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

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
    assert "family  unknown; 5 tensors" in inspection.inspect(write(resnet))


def test_only_an_optimiser(torch, tmp_path):
    state = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"optimizer": state, "epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="no tensors by name, only the entries optimizer, epoch"):
        crate_jax.load(tmp_path / "a.pth", heads=4)
    torch.save([torch.zeros(3)], tmp_path / "b.pth")
    with pytest.raises(ValueError, match="expected a dictionary of tensors, got list"):
        crate_jax.load(tmp_path / "b.pth", heads=4)


def test_foreign_metadata(tmp_path, crate_state):
    import safetensors.numpy

    path = tmp_path / "a.safetensors"
    for text in ("not json", "[1]", '{"config": 3}'):
        safetensors.numpy.save_file(crate_state(), path, metadata={"crate_jax": text})
        with pytest.raises(ValueError, match="is not a declaration written by this project"):
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
