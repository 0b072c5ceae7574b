"""The table of a network: every parameter once, and what learns in each stage."""

import pytest
from typer.testing import CliRunner

from braintumor_ray.cli.network import app
from braintumor_ray.models.layers import blocks_of, draw_blocks, table_lines
from tests.builders import make_model


@pytest.mark.parametrize("backbone", ["small-cnn", "mobilenetv2_100"])
def test_every_parameter_is_in_one_row_and_nothing_is_left_on_the_network(backbone):
    model = make_model(backbone)
    blocks = blocks_of(model, ["head", "all"])
    assert sum(b.parameters for b in blocks) == sum(p.numel() for p in model.parameters())
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    head = next(b for b in blocks if b.name == "head")
    assert head.output == (4,)
    assert head.learns == (head.parameters,) * 2
    others = [b for b in blocks if b.name.startswith("backbone")]
    assert len({b.name for b in others}) == len(others) > 3
    assert all(b.learns == (0, b.parameters) for b in others)


def test_the_table_tells_what_is_frozen_and_the_picture_is_written(tmp_path):
    blocks = blocks_of(make_model(), [2, "all"])
    lines = table_lines(blocks)
    assert len(lines) == len(blocks) + 2
    assert "frozen" in lines[1]
    assert f"{sum(b.parameters for b in blocks):,}" in lines[-1]
    draw_blocks(blocks, tmp_path / "deep" / "network.png", "a network")
    assert (tmp_path / "deep" / "network.png").read_bytes().startswith(b"\x89PNG")


def test_a_neck_learns_in_every_stage():
    model = make_model("mobilenetv2_100", neck="topdown", neck_channels=16, neck_stride=16)
    blocks = blocks_of(model, ["head"])
    neck = next(b for b in blocks if b.name == "neck")
    assert neck.learns == (neck.parameters,)


def test_a_picture_without_an_ending_is_a_png_and_the_command_tells_its_name(bundle_path, tmp_path):
    done = CliRunner().invoke(app, [str(bundle_path), "--output", str(tmp_path / "net")])
    assert done.exit_code == 0, done.output
    assert f"picture: {tmp_path / 'net.png'}" in done.output
    assert (tmp_path / "net.png").read_bytes().startswith(b"\x89PNG")
