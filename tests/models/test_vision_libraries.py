"""timm and grad-cam import torchvision, whose compiled extension may not fit torch's build."""

import pytest
import torch

from braintumor_ray.errors import WeightsError
from braintumor_ray.models import vision_libraries
from tests.command import run_python

UNFIT = """
import sys, torch
load = torch.ops.load_library
def refuse(path):
    if "torchvision" in str(path):
        raise OSError("undefined symbol")
    return load(path)
torch.ops.load_library = refuse
from braintumor_ray.models.vision_libraries import import_grad_cam, import_timm
network = import_timm().create_model("resnet10t", num_classes=2).eval()
print(tuple(network(torch.zeros(1, 3, 32, 32)).shape), import_grad_cam().__name__)
"""


def test_timm_and_grad_cam_work_where_torchvision_s_extension_does_not_fit():
    done = run_python("-c", UNFIT)
    assert done.stdout.split("\n")[0] == "(1, 2) pytorch_grad_cam", done.stderr


def test_a_torchvision_that_cannot_be_imported_at_all_is_one_sentence(monkeypatch):
    def refuse(name):
        raise RuntimeError("operator torchvision::other does not exist")

    monkeypatch.setattr(vision_libraries, "import_module", refuse)
    monkeypatch.setattr(torch.library, "define", lambda *declaration: None)
    with pytest.raises(WeightsError, match=r"torchvision.*other.*install both"):
        vision_libraries._import_torchvision.__wrapped__()


def test_torch_s_compiler_is_not_imported_and_works_where_it_is_wanted():
    code = """
import sys
from braintumor_ray.models.vision_libraries import import_timm
network = import_timm().create_model("resnet10t", num_classes=2).eval()
print("sympy" in sys.modules, "torch._dynamo" in sys.modules)
import torch
print(torch.compile(network, backend="eager")(torch.zeros(1, 3, 32, 32)).shape[1])
"""
    done = run_python("-c", code)
    assert done.stdout.split("\n")[:2] == ["False False", "2"], done.stderr
