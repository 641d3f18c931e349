"""A system without LightGBM's library is named as such, before a training begins."""

import importlib

import pytest

import tft_trainer
from fleet_forecast.risk import lightgbm_library


def test_without_libgomp_the_trainer_ends_at_once_with_the_remedy(monkeypatch, tmp_path, capsys):
    imported = importlib.import_module

    def without(name):
        if name == "lightgbm":
            raise OSError("libgomp.so.1: cannot open shared object file: No such file or directory")
        return imported(name)

    monkeypatch.setattr(lightgbm_library.importlib, "import_module", without)
    with pytest.raises(lightgbm_library.LightgbmMissingError, match=r"apt-get install libgomp1 .*\(libgomp"):
        lightgbm_library.load_lightgbm()
    flags = ["--training-dir", str(tmp_path), "--models-dir", str(tmp_path / "models")]
    assert tft_trainer.main(flags) == 1
    assert "error: the risk model needs the package lightgbm and the library libgomp1" in capsys.readouterr().err
    assert tft_trainer.main([*flags, "--no-risk-model"]) == 1
    assert "libgomp1" not in capsys.readouterr().err
