"""What the end of a run prints."""

from crate_jax.training import console


def test_an_evaluation_shows_every_control(capsys):
    values = {"val/images": 2000, "val/loss": 1.2345, "val/top1": 0.5, "val/cls_iou_all_ones": 0.2}
    for kind, value in (("", 0.5), ("_other", 0.42), ("_own_minus_other", 0.08), ("_random", 0.33)):
        name = f"val/cls_iou{kind}/mass/best/layer01"
        values |= {name: value, f"{name}/low": value - 0.01, f"{name}/high": value + 0.01}
    values |= {"val/coding_rate/layer01": 190.0, "val/sparsity/layer01": 0.4}
    console.print_evaluation(values, 0.6)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["val/loss", "1.2345"] in lines
    assert ["1", "0.500", "0.420", "+0.080", "[+0.070", "to", "+0.090]", "0.330"] in lines
    assert ["the", "whole", "image", "0.200"] in lines
    assert ["1", "190.000", "0.400"] in lines
