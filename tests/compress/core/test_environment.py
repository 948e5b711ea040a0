from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from compress.core.environment import choose_device, environment, peak_gigabytes, settle_threads, usable_cores
from compress.core.errors import InputError
from compress.runs import doctor


def test_the_environment_names_versions_processor_and_threads() -> None:
    found = environment("cpu")
    assert found["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["cores"] >= 1
    assert found["device_name"] is None


def test_an_absent_device_is_refused_and_the_processor_always_taken() -> None:
    assert choose_device("cpu") == "cpu"
    with pytest.raises(InputError, match="allowed auto, cpu"):
        choose_device("cuda:99")


def test_small_batches_run_on_one_thread_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        assert settle_threads(1e8) == 1
        assert settle_threads(1e11) == usable_cores()
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        torch.set_num_threads(2)
        assert settle_threads(1e8) == 2
    finally:
        torch.set_num_threads(before)


def test_doctor_names_other_owners_of_our_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"spaces": ["spaces", "compress"]})
    assert doctor.foreign_owners() == {"spaces": ["spaces"]}


def test_peak_memory_is_told_in_gigabytes_whatever_unit_the_system_counts_in(monkeypatch: pytest.MonkeyPatch) -> None:
    used = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: SimpleNamespace(ru_maxrss=3 * 2**20))
    monkeypatch.setitem(sys.modules, "resource", used)
    monkeypatch.setattr(sys, "platform", "linux")
    assert peak_gigabytes() == 3.0
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_gigabytes() == 3 / 2**10
    monkeypatch.setitem(sys.modules, "resource", None)  # Windows has no such module
    assert peak_gigabytes() == 0.0


def test_doctor_names_packages_that_are_missing_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.unmet_requirements() == []
    needed = ["torch>=99", "absent-package>=1.0", "numpy>=1.0", "ray>=99; extra == 'ray'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: needed)
    torch_too_old, absent = doctor.unmet_requirements()
    assert (
        torch_too_old.startswith(f"torch is {torch.__version__.partition('+')[0]}")
        and "torch>=99 is needed" in torch_too_old
    )
    assert absent == "absent-package is not installed; absent-package>=1.0 is needed"


def test_doctor_says_what_to_do_about_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "version_of", lambda package: None)
    monkeypatch.setattr("shutil.which", lambda program: None)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**9))
    found = doctor.examine()
    doctor.print_examination(found)
    lines = capsys.readouterr().out.splitlines()
    (ray,) = (line for line in lines if line.startswith("  ray "))
    assert 'missing: pip install "compress[ray]"' in ray and "executor" in ray
    (ssh,) = (line for line in lines if line.startswith("  ssh "))
    assert "missing: install an SSH client" in ssh
    assert any("1.00 GB are free" in line for line in found["warnings"])
    assert all(check["purpose"] and (check["found"] or check["remedy"]) for check in found["checks"])
