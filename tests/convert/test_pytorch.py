"""PyTorch's side: their files in, ours out, and outputs against plain PyTorch modules.

The modules here are written from the equations under the authors' names, so that shapes, depths,
heads and poolings that no reference file has can be tried. Skipped without the `torch` extra.
"""

import pickle
import traceback

import numpy as np
import pytest

import crate_jax
from crate_jax.convert import checkpoints, formats, inspection

torch = pytest.importorskip("torch", reason="needs the torch extra")
nn, F = torch.nn, torch.nn.functional
FILES = ("crate_mini.pth.tar", "crate_alpha_mini.pth", "crate_mae_mini.pth", "dino_vit_mini.pth")


class Op(nn.Module):
    """A norm and a map, named as the authors' PreNorm."""

    def __init__(self, dim, fn):
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(dim), fn


class Subspace(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim)) if heads > 1 else nn.Identity()

    def forward(self, x):
        w = self.qkv(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        out = torch.softmax(w @ w.mT / w.shape[-1] ** 0.5, -1) @ w
        return self.to_out(out.transpose(1, 2).flatten(2))


class Dictionary(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim, dim) / dim**0.5)

    def forward(self, y):
        D = self.weight
        return F.relu(y + 0.1 * (y @ D - y @ D.T @ D) - 0.01)


class PlainCrate(nn.Module):
    def __init__(self, size, patch, dim, depth, heads, classes, pool):
        super().__init__()
        self.patch, self.pool = patch, pool
        pixels, n = 3 * patch**2, (size[0] // patch) * (size[1] // patch)
        self.to_patch_embedding = nn.Sequential(
            nn.Identity(), nn.LayerNorm(pixels), nn.Linear(pixels, dim), nn.LayerNorm(dim)
        )
        self.pos_embedding = nn.Parameter(torch.randn(1, n + 1, dim))
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.transformer = nn.Module()
        self.transformer.layers = nn.ModuleList(
            nn.ModuleList([Op(dim, Subspace(dim, heads)), Op(dim, Dictionary(dim))])
            for _ in range(depth)
        )
        self.mlp_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, classes))

    def forward(self, images):
        p = self.patch
        x = images.unfold(2, p, p).unfold(3, p, p)  # b c rows columns p p
        x = self.to_patch_embedding(x.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2))
        z = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embedding
        for attention, ista in self.transformer.layers:
            z = z + attention.fn(attention.norm(z))
            z = ista.fn(ista.norm(z))
        return self.mlp_head(z.mean(1) if self.pool == "mean" else z[:, 0])


@pytest.mark.parametrize(
    ("heads", "pool", "size", "depth"),
    [(1, "cls", (32, 32), 1), (2, "mean", (16, 40), 3), (6, "mean", (24, 24), 5)],
)
def test_shapes_that_no_reference_has(heads, pool, size, depth, tmp_path, run, error):
    torch.manual_seed(heads)
    plain = PlainCrate(size, 8, 24, depth, heads, 7, pool).eval()
    with torch.no_grad():  # nothing trivial
        for parameter in plain.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        images = torch.randn(2, 3, *size)
        expected = plain(images).numpy()
    checkpoint = {"state_dict": {f"module.{k}": v for k, v in plain.state_dict().items()}}
    torch.save({**checkpoint, "epoch": 3, "optimizer": {"state": {}}}, tmp_path / "a.pth.tar")
    declared = {"pool": pool, "image_size": size} | ({"heads": heads} if heads > 1 else {})
    model = crate_jax.load(tmp_path / "a.pth.tar", **declared)
    assert (model.config.heads, model.config.depth) == (heads, depth)
    logits, _ = run(model, images.numpy().transpose(0, 2, 3, 1))
    assert error(logits, expected) < 1e-5
    # And back: strict loading into the other module, the same outputs to the last bit.
    checkpoints.save(model, tmp_path / "b.pth")
    again = PlainCrate(size, 8, 24, depth, heads, 7, pool).eval()
    again.load_state_dict(torch.load(tmp_path / "b.pth", weights_only=True), strict=True)
    with torch.no_grad():
        np.testing.assert_array_equal(again(images).numpy(), expected)


@pytest.mark.parametrize("target", ["x.safetensors", "x.npz", "x.pth", "x.pth.tar"])
@pytest.mark.parametrize("name", FILES)
def test_round_trips_are_bit_equal(name, target, reference_files, reference, tmp_path):
    """Theirs -> target -> .pth.tar: names, shapes and every bit, as in the reference archive."""
    checkpoints.save(checkpoints.read(reference_files / name, heads=4), tmp_path / target)
    declared = {"heads": 4} if ".pth" in target else {}
    middle = checkpoints.read(tmp_path / target, **declared)
    checkpoints.save(middle, tmp_path / "y.pth.tar")
    content = torch.load(tmp_path / "y.pth.tar", weights_only=True)
    assert set(content) == {"state_dict"}
    expected, _ = reference(name.split(".")[0])
    if name == "crate_alpha_mini.pth" or not target.endswith(".npz"):
        assert set(content["state_dict"]) == set(expected)
    for key, values in expected.items():
        tensor = content["state_dict"][key]
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        np.testing.assert_array_equal(tensor.numpy().view(np.int32), values.view(np.int32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_survive(dtype, reference_files, tmp_path):
    tensors = torch.load(reference_files / "crate_alpha_mini.pth", weights_only=True)
    tensors = {k: v.to(dtype) for k, v in tensors.items()}
    torch.save(tensors, tmp_path / "a.pth")
    checkpoints.save(checkpoints.read(tmp_path / "a.pth", heads=4), tmp_path / "b.npz")
    checkpoints.save(checkpoints.read(tmp_path / "b.npz"), tmp_path / "c.safetensors")
    checkpoints.save(checkpoints.read(tmp_path / "c.safetensors"), tmp_path / "d.pth")
    again = torch.load(tmp_path / "d.pth", weights_only=True)
    assert all(again[k].dtype == dtype and torch.equal(again[k], v) for k, v in tensors.items())


def test_teacher_student_and_projection_head(reference_files, tmp_path):
    """A full DINO checkpoint: the teacher is read, the student on demand, the head left out."""
    teacher = torch.load(reference_files / "dino_vit_mini.pth", weights_only=True)["teacher"]
    student = {k: v + 1 for k, v in teacher.items()}
    head = {
        "module.head.mlp.0.weight": torch.zeros(8, 48),
        "module.head.last_layer.weight_g": (torch.zeros(3, 1)),
    }
    torch.save(
        {"student": student | head, "teacher": teacher | head, "epoch": 100}, tmp_path / "a.pth"
    )
    read = checkpoints.read(tmp_path / "a.pth", heads=4)
    cls = teacher["module.backbone.cls_token"].numpy()
    np.testing.assert_array_equal(read.params["cls_token"], cls)
    assert any("left out beside the network: head.mlp.0.weight" in note for note in read.notes)
    assert any("'student'" in note for note in read.notes)
    read = checkpoints.read(tmp_path / "a.pth", heads=4, entry="student")
    np.testing.assert_array_equal(read.params["cls_token"], cls + 1)


def test_legacy_files_without_a_zip(reference_files, tmp_path):
    content = torch.load(reference_files / "crate_mini.pth.tar", weights_only=True)
    torch.save(content, tmp_path / "a.pth.tar", _use_new_zipfile_serialization=False)
    assert crate_jax.load(tmp_path / "a.pth.tar", heads=4).config.classes == 10


def test_safetensors_load_in_pytorch(reference_files, tmp_path):
    from safetensors.torch import load_file

    checkpoints.save(
        checkpoints.read(reference_files / "crate_mini.npz", heads=4), tmp_path / "a.safetensors"
    )
    plain = PlainCrate((32, 32), 8, 48, 3, 4, 10, "cls").eval()
    plain.load_state_dict(load_file(tmp_path / "a.safetensors"), strict=True)
    with np.load(reference_files / "crate_mini.npz") as file, torch.no_grad():
        logits = plain(torch.from_numpy(file["images"])).numpy()
        np.testing.assert_allclose(logits, file["logits"], rtol=1e-4, atol=1e-5)


def line_of(call):
    with pytest.raises(ValueError) as raised:
        call()
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


class TestStrangeTensors:
    def saved(self, tmp_path, crate_state, change):
        state = {k: torch.from_numpy(v) for k, v in crate_state().items()}
        state |= change
        torch.save(state, tmp_path / "a.pth")
        return tmp_path / "a.pth"

    @pytest.mark.parametrize(
        ("tensor", "said"),
        [
            (lambda: torch.zeros(1, 17, 24, device="meta"), "a meta tensor, which has none"),
            (lambda: torch.zeros(1, 17, 24).to_sparse(), "expected a dense tensor"),
            (lambda: torch.zeros(1, 17, 24).to(torch.float8_e5m2), "of 8 bits"),
            (lambda: torch.zeros(1, 17, 24, dtype=torch.complex64), "not floating-point"),
        ],
    )
    def test_each_is_named(self, tensor, said, tmp_path, crate_state):
        path = self.saved(tmp_path, crate_state, {"pos_embedding": tensor()})
        with pytest.raises(ValueError, match=said) as raised:
            crate_jax.load(path, heads=3)
        assert "pos_embedding" in str(raised.value)

    def test_a_number_of_numpy_beside_the_weights(self, tmp_path, crate_state):
        best = {"best_acc": np.float64(0.5), "epoch": np.int64(3), "done": np.bool_(True)}
        path = self.saved(tmp_path, crate_state, best)
        assert crate_jax.load(path, heads=3).config.depth == 2
        tree = formats.read(path).tree
        assert (tree["best_acc"], tree["epoch"], tree["done"]) == (0.5, 3, True)
        assert "best_acc, epoch, done" in inspection.inspect(path)

    def test_of_objects_it_is_refused(self, tmp_path, crate_state):
        """Bytes that say they are an object would be unpickled by NumPy."""

        class Number:
            def __reduce__(self):
                scalar = np.float64(0).__reduce__()[0]
                return scalar, (np.dtype(object), b"cposix\nsystem\n(S'touch x'\ntR.")

        path = self.saved(tmp_path, crate_state, {"best_acc": Number()})
        assert "a NumPy scalar of type object" in line_of(lambda: crate_jax.load(path, heads=3))


def test_refusals_never_advise_to_trust_the_file(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("x",)

    files = {"call": pickle.dumps(Evil(), 2), "opcode": b"\x80\x02\x96", "cut": b"\x80\x02}q\x00("}
    for name, data in files.items():
        (tmp_path / f"{name}.pth").write_bytes(data)
    torch.save({"a": Evil()}, tmp_path / "zip.pth")
    torch.save(Evil(), tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    for path in tmp_path.glob("*.pth"):
        with pytest.raises(ValueError) as raised:
            crate_jax.load(path, heads=2)
        shown = "".join(traceback.format_exception(raised.value))  # as Python prints it
        for advice in ("weights_only", "Weights only", "add_safe_globals", "arbitrary code"):
            assert advice not in shown, path


def test_of_several_networks_it_is_said_which_was_taken(tmp_path, crate_state, caplog):
    state = {k: torch.from_numpy(v) for k, v in crate_state().items()}
    average = {k: v + 1 for k, v in state.items()}
    torch.save({"model": state, "model_ema": average}, tmp_path / "a.pth")
    crate_jax.load(tmp_path / "a.pth", heads=3)
    assert "read entry 'model'; others with a network: 'model_ema'" in caplog.text
    found = checkpoints.read(tmp_path / "a.pth", heads=3, entry="model_ema")
    np.testing.assert_array_equal(found.params["cls_token"], average["cls_token"].numpy())
