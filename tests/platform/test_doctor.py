from __future__ import annotations

import importlib.metadata

import pytest
import torch

from rankloom import doctor
from rankloom.doctor import PACKAGES, Finding, diagnose


def test_this_machine_can_search() -> None:
    findings = {finding.check: finding for finding in diagnose()}
    assert {*PACKAGES, "4-bit arithmetic", "disk"} < findings.keys()
    assert [finding for finding in findings.values() if finding.state == "error"] == []
    assert findings["torch"].found == importlib.metadata.version("torch")
    assert ("GPU 0" in findings) == torch.cuda.is_available()
    assert all(finding.fix for finding in findings.values() if finding.state != "ok")


def test_a_missing_package_is_an_error_and_the_rest_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    assert diagnose()[1:] == [
        Finding(state="error", check="no-such-package", found="not installed", fix="pip install no-such-package")
    ]


def test_wrong_arithmetic_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes.functional

    monkeypatch.setattr(bitsandbytes.functional, "dequantize_4bit", lambda packed, state: torch.zeros(64, 64))
    wrong = next(finding for finding in diagnose() if finding.check == "4-bit arithmetic")
    assert (wrong.state, wrong.found) == ("error", "NF4 is off by 1.00")


def test_little_disk_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "FREE_DISK_BYTES", 2**80)
    disk = next(finding for finding in diagnose() if finding.check == "disk")
    assert disk.state == "note" and disk.fix
