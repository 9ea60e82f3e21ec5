"""How the package installs: its extras, and an environment that an older version left broken."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import onnxruntime
import pytest
from conftest import ROOT
from rtseg import install
from rtseg.errors import ArtifactError, MissingPackage
from rtseg.export import export
from rtseg.gpu import Gpu, gpus
from rtseg.install import localize
from rtseg.models.loading import Model
from rtseg.runtime import load, packages
from rtseg.runtime.packages import pip_line

setuptools: Any = pytest.importorskip("setuptools", reason="needs setuptools: pip install it")


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    """What setup.py defines, and under "told" what it tells setuptools."""
    told: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **words: told.update(words))
        patch.chdir(ROOT)
        return runpy.run_path(str(ROOT / "setup.py")) | {"told": told}


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[>=;]", line)[0] for line in requirements}


def test_no_extra_brings_both_packages_of_onnx_runtime(script: dict[str, Any]) -> None:
    base, extras = names(script["told"]["install_requires"]), script["told"]["extras_require"]
    assert not base & {"onnxruntime", "onnxruntime-gpu"}
    on_cpu = {extra for extra, needs in extras.items() if "onnxruntime" in names(needs)}
    on_gpu = {extra for extra, needs in extras.items() if "onnxruntime-gpu" in names(needs)}
    assert on_cpu == {"cpu", "all", "dev", "qnn", "executorch"}
    assert on_gpu == {"gpu", "all-gpu", "dev-gpu"}
    for name in ("all", "dev"):  # README's two commands have a twin for a GPU each
        assert names(extras[name]) - names(extras[f"{name}-gpu"]) == {"onnxruntime"}


def test_the_base_package_runs_artifacts(script: dict[str, Any]) -> None:
    assert "openvino" in names(script["told"]["install_requires"])


def test_the_readme_s_links_survive_on_a_package_index(script: dict[str, Any]) -> None:
    home = "https://example.com/rtseg"
    targets = re.findall(r"\]\(([^)]+)\)", script["long_description"](home))
    assert f"{home}/blob/HEAD/docs/drive.md" in targets
    assert all(re.match("https?:|#", target) for target in targets)
    assert not [
        t for t in re.findall(r"\]\(([^)]+)\)", script["long_description"]("")) if "docs" in t
    ]


@pytest.mark.parametrize(
    ("told", "home"),
    [
        ("https://name:secret@example.com/rtseg.git", "https://example.com/rtseg"),
        ("git@example.com:group/rtseg.git", "https://example.com/group/rtseg"),
        ("ssh://git@example.com/rtseg", "https://example.com/rtseg"),
        ("/a/folder", ""),
    ],
)
def test_the_home_page_is_where_the_clone_came_from(
    told: str, home: str, script: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.CompletedProcess((), 0, told + "\n", "")
    monkeypatch.setattr(script["subprocess"], "run", lambda *words, **options: done)
    assert script["find_home"]() == home


def test_every_file_that_the_code_reads_is_in_the_wheel(script: dict[str, Any]) -> None:
    """A file of another kind than Python's that setup.py does not name is in a checkout only."""
    told, missing, weights = script["told"], [], ROOT / "models" / "pretrained"
    for folder in map(Path, script["FOLDERS"]):
        for path in (ROOT / folder).rglob("*"):
            if path.is_dir() or path.suffix in (".pyc", ".sh"):  # scripts are for checkouts
                continue
            if weights in path.parents:  # a distribution of its own
                continue
            package = "rtseg." + ".".join(path.relative_to(ROOT).parts[:-1])
            shipped = path.suffix == ".py" and package in told["packages"]
            for name, patterns in told["package_data"].items():
                home = ROOT.joinpath(*name.split(".")[1:])
                shipped |= any(path in home.glob(pattern) for pattern in patterns)
            missing += [] if shipped else [str(path.relative_to(ROOT))]
    assert not missing


def test_the_weights_are_a_distribution_of_their_own(
    script: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, extras = ROOT / "models" / "pretrained", script["told"]["extras_require"]
    needed = f"rtseg-weights @ {folder.as_uri()}"
    assert {extra for extra, needs in extras.items() if needed in needs} == {
        "weights", "all", "all-gpu",
    }  # fmt: skip
    assert not [n for n in script["told"]["install_requires"] if "weights" in n]
    about = (folder / "pyproject.toml").read_text()
    (patterns,) = re.findall(r"^rtseg_weights = \[(.+)\]$", about, flags=re.MULTILINE)
    taken = {path for each in re.findall(r'"(.+?)"', patterns) for path in folder.glob(each)}
    told = {folder / "pyproject.toml", folder / "README.md"}
    assert taken == {path for path in folder.iterdir() if path.is_file()} - told
    monkeypatch.setitem(script["ask_weights"].__globals__, "HERE", tmp_path)
    assert script["ask_weights"]() == "rtseg-weights>=0.2"  # built of a source distribution


def left_over(folder: Path) -> Path:
    """What uninstalling an older version leaves in a folder of packages."""
    package = folder / "rtseg"
    compiled = package / "runtime" / "__pycache__"
    compiled.mkdir(parents=True)
    for name in ("labels_cpu.mix-43.py311.nbi", "labels_cpu.mix-43.py311.1.nbc"):
        (compiled / name).write_bytes(b"code")
    return package


def test_an_editable_install_removes_what_would_hide_it(
    script: dict[str, Any], tmp_path: Path
) -> None:
    package = left_over(tmp_path)
    script["remove_leftovers"](package)
    assert not package.exists()
    script["remove_leftovers"](package)  # nothing there: nothing to do


def test_an_installed_package_loses_its_compiled_loops_only(
    script: dict[str, Any], tmp_path: Path
) -> None:
    package = left_over(tmp_path)
    kept = [package / "__init__.py", package / "runtime" / "__pycache__" / "card.cpython-311.pyc"]
    for path in kept:
        path.touch()
    script["remove_leftovers"](package)
    assert [path for path in package.rglob("*") if path.is_file()] == kept


def test_somebody_s_own_files_are_let_be(script: dict[str, Any], tmp_path: Path) -> None:
    package = left_over(tmp_path)
    (package / "notes.txt").touch()
    script["remove_leftovers"](package)
    assert [path.name for path in package.rglob("*")] == ["notes.txt"]


HIDDEN = """
import sys
from importlib.machinery import PathFinder

class Editable:  # as setuptools' finder, which Python asks last
    def find_spec(self, name, path=None, target=None):
        if name.rpartition(".")[0] == "rtseg":
            return PathFinder.find_spec(name, [{root!r}])

sys.path.insert(0, {folder!r})
sys.meta_path.append(Editable())
from rtseg.cli import main
main()
"""


def test_a_hidden_checkout_says_what_hides_it(tmp_path: Path) -> None:
    package = left_over(tmp_path)
    code = HIDDEN.format(root=str(ROOT), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        f"rtseg: {package} was left by an older version and hides this one: delete it\n"
    )


WITHOUT = """
import sys
sys.modules["onnxruntime"] = None  # not installed, as far as imports can tell
from rtseg.errors import MissingPackage
from rtseg.runtime import load
with load({path!r}) as segment:
    assert segment.info.name == "openvino", segment.info
try:
    import rtseg.export
except MissingPackage as error:
    print(error)
"""


def test_without_onnx_runtime_artifacts_run_and_export_says_what_it_needs(
    nano: Model, tmp_path: Path
) -> None:
    (made,) = export(nano.network, [(64, 128)], out=tmp_path, classes=nano.classes)
    code = WITHOUT.format(path=str(made.path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    extra = "gpu" if gpus() else "cpu"
    assert done.stdout == localize(f'export needs ONNX Runtime: pip install "rtseg[{extra}]"\n')


@pytest.mark.parametrize("here", [[], [Gpu(0, "NVIDIA Test", "8.6", "580.65", None)]])
@pytest.mark.parametrize("present", [True, False])
def test_onnx_runtime_s_package_is_the_machine_s(
    here: list[Gpu], present: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = "gpu" if here else "cpu"
    monkeypatch.setattr(packages, "gpus", lambda: here)
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: present or None)
    assert pip_line("cpu") == f'pip install "rtseg[{runtime}]"'
    assert pip_line("export") == f'pip install "rtseg[export{"" if present else "," + runtime}]"'
    assert pip_line("openvino") == 'pip install "rtseg[openvino]"'


REQUIRES = (
    "numpy>=1.26",
    "torch>=2.6; extra == 'export'",
    'onnx>=1.17; extra == "export"',
    "openvino>=2025.0; extra == 'openvino'",
    'triton>=3.2; platform_system == "Linux" and extra == "gpu"',
)


def test_the_line_that_brings_an_extra_needs_no_index_that_has_this_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "rtseg-0.1.0-py3-none-any.whl"
    wheel.touch()

    def told(url: str | None, more: str = "") -> str:
        origin = None if url is None else f'{{"url": "{url}"{more}}}'
        found = Mock(read_text=lambda name: origin)
        monkeypatch.setattr(install.metadata, "distribution", lambda name: found)
        return str(MissingPackage('first: pip install "rtseg[export,gpu]", or not'))

    monkeypatch.setattr(install.metadata, "requires", lambda name: REQUIRES)
    checkout = install.ROOT
    assert told(None) == f'first: pip install -e "{checkout}[export,gpu]", or not'
    monkeypatch.setattr(install, "ROOT", tmp_path / "site-packages" / "rtseg")
    assert told(None) == 'first: pip install "rtseg[export,gpu]", or not'
    assert told(f"file://{wheel}") == f'first: pip install "{wheel}[export,gpu]", or not'
    assert told("file:///gone/rtseg.whl") == (
        'first: pip install "torch>=2.6" "onnx>=1.17" "triton>=3.2", or not'
    )
    assert told("https://example.org/rtseg", ', "vcs_info": {"vcs": "git"}') == (
        'first: pip install "rtseg[export,gpu] @ git+https://example.org/rtseg", or not'
    )


def test_cuda_is_looked_for_among_what_pip_installed(
    nano: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def preload_dlls() -> None:
        print("Failed to load libcudnn.so.9: not found")

    (made,) = export(nano.network, [(64, 128)], out=tmp_path, classes=nano.classes)
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload_dlls)
    with pytest.raises(ArtifactError, match=r"start CUDA \(Failed to load libcudnn\.so\.9"):
        load(made.path, "onnxruntime", "cuda:99")
    assert "libcudnn" not in capsys.readouterr().out


def test_the_tests_run_in_a_checkout_of_any_name(tmp_path: Path) -> None:
    """GitHub's archive unpacks as `rtseg-main`, which is no name of a package."""
    checkout = tmp_path / "rtseg-main"
    (checkout / "tests").mkdir(parents=True)
    for name in ("__init__.py", "pyproject.toml", "tests/conftest.py"):
        (checkout / name).write_text((ROOT / name).read_text())
    (checkout / "tests" / "golden").symlink_to(ROOT / "tests" / "golden")
    (checkout / "tests" / "test_one.py").write_text("def test_one() -> None: ...\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        capture_output=True, text=True, check=False, cwd=checkout,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
