import subprocess
import sys

CORE = ("config", "schedule", "slices", "targets", "losses", "metrics", "device", "teaching", "networks", "cotraining")

SCRIPT = """
import importlib, sys

class NoNnunet:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("nnunetv2", "batchgenerators", "batchgeneratorsv2"):
            raise ModuleNotFoundError(f"{name} is not installed", name=name)

sys.meta_path.insert(0, NoNnunet())
for module in sys.argv[1:]:
    importlib.import_module(f"nnunet_mn.{module}")
assert not [name for name in sys.modules if name.startswith("nnunet_mn.bridge")]
try:
    import nnunet_mn.bridge.training.loader
except ModuleNotFoundError:
    print("the bridge needs nnU-Net, the core does not")
"""


def test_the_core_loads_without_nnunet_and_without_the_bridge() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, *CORE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the core does not" in done.stdout


def test_finding_and_checking_cases_needs_no_torch() -> None:
    cases = ", ".join(f"nnunet_mn.bridge.cases.{name}" for name in ("splits", "roles", "sources", "unlabeled"))
    modules = f"{cases}, nnunet_mn.bridge.preprocessing.to_do"
    script = f"import sys, {modules}; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_words_and_split_files_need_no_reader_of_images() -> None:
    script = "import sys, nnunet_mn.bridge.cases.splits; assert not {'torch', 'SimpleITK', 'nibabel'} & {*sys.modules}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
