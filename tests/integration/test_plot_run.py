#!/usr/bin/env python3
"""scripts/plot_run.py: pictures of synthetic runs, and the errors it promises."""

import contextlib
import importlib.util
import io
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "plot_run.py"
HAVE_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None

TRAIN = [{"type": "train", "step": step, "tokens": 64 * (step + 1), "loss": 10.0 / (step + 1),
          "lr": 1e-3 * (step + 1), "phase": phase, "grad_norm": 1.0,
          "delta": 7.0 / (step + 1), "tokens_per_s": 64.0, "step_ms": 1000.0}
         for step, phase in enumerate(["warmup", "warmup", "constant", "decay", "decay"])]
VAL = [{"type": "val", "step": 5, "loss": 2.5, "tokens": 320}]
MARKS = [{"type": "nonfinite", "step": 2, "what": "loss", "value": "nan", "tensor": None},
         {"type": "spike", "step": 3, "loss": 9.5, "expected": 3.0, "tensor": "x", "ratio": 2.0}]
NORMS = [{"type": "update_norms", "step": step, "tensors": {
    "model.embed_tokens.weight": 0.5, "model.layers.0.self_attn.q_proj.weight": 0.1 * (step + 1),
    "model.layers.1.self_attn.o_proj.weight": 0.3 * (step + 1), "model.norm.weight": None}} for step in (0, 2, 4)]
OTHERS = [{"type": "schedule", "step": 0, "kappa": 3.0, "delta_star": 2.5}, {"type": "summary", "steps": 5, "val_loss": 2.5}]


def load_script():
    if str(SCRIPT.parent) not in sys.path:
        sys.path.insert(0, str(SCRIPT.parent))  # as where a script is started
    spec = importlib.util.spec_from_file_location("plot_run", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class PlotRun(unittest.TestCase):
    def setUp(self):
        self._temporary = tempfile.TemporaryDirectory()
        self.addCleanup(self._temporary.cleanup)
        self.root = pathlib.Path(self._temporary.name)

    def make_run(self, name, lines, config=None, tail=""):
        folder = self.root / name
        folder.mkdir()
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text + tail)
        if config is not None:
            (folder / "run_config.json").write_text(json.dumps(config))
        return str(folder)

    def plot(self, *arguments):
        """Runs main() in this process, so that matplotlib is imported once."""
        out, err = io.StringIO(), io.StringIO()
        with mock.patch.object(sys, "argv", [str(SCRIPT), *arguments]):
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    status = load_script().main()
                except SystemExit as error:
                    status = error.code
        return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())

    def expect_error(self, result, *parts):
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)
        for part in parts:
            self.assertIn(part, result.stderr)

    def expect_picture(self, path):
        data = pathlib.Path(path).read_bytes()
        self.assertEqual(data[:8], b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", data[16:24])
        self.assertGreater(width, 800)
        self.assertGreater(height, 600)

    @unittest.skipUnless(HAVE_MATPLOTLIB, "python3-matplotlib is not installed")
    def test_one_run_is_drawn_into_its_folder(self):
        config = {"run": {"name": "tiny"}, "schedule": {"warmup": {"target_loss": 3.0}}}
        folder = self.make_run("a", OTHERS[:1] + TRAIN + VAL + OTHERS[1:], config)
        result = self.plot(folder)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertEqual(result.stdout.strip(), os.path.join(folder, "plot.png"))
        self.expect_picture(os.path.join(folder, "plot.png"))

    @unittest.skipUnless(HAVE_MATPLOTLIB, "python3-matplotlib is not installed")
    def test_several_runs_and_odd_ones(self):
        runs = [self.make_run("a", TRAIN + VAL),
                self.make_run("b", TRAIN[:1]),                              # one point
                self.make_run("c", VAL, {"run": {"name": "a"}}),            # no train lines
                self.make_run("e", TRAIN[:2] + MARKS[:1] + TRAIN[3:] + MARKS[1:]),
                self.make_run("d", TRAIN + [dict(TRAIN[0], step=5, loss=None, lr=1e-9)])]
        target = str(self.root / "all.png")
        for chosen in (runs, runs[1:2], runs[2:3], runs[3:4]):
            result = self.plot(*chosen, "--out", target)
            self.assertEqual((result.returncode, result.stderr), (0, ""))
            self.expect_picture(target)
            os.remove(target)

    def test_the_curves_are_those_of_the_log(self):
        config = {"run": {"name": "tiny"},
                  "schedule": {"warmup": {"type": "adaptive", "target_loss": 3.25}}}
        run = load_script().Run(self.make_run("a", TRAIN + VAL, config, tail='{"type": "tra'))
        self.assertEqual(run.name, "tiny")
        self.assertEqual(run.target, 3.25)
        self.assertEqual(run.curve("loss"), ([0, 1, 2, 3, 4], [10.0 / step for step in range(1, 6)]))
        self.assertEqual(run.curve("lr")[1][1], 2e-3)
        self.assertEqual([(line["step"], line["loss"]) for line in run.val], [(5, 2.5)])
        self.assertEqual(run.phases(), [["warmup", 0, 2], ["constant", 2, 3], ["decay", 3, 5]])

    def test_what_went_wrong_is_marked(self):
        run = load_script().Run(self.make_run("a", TRAIN[:2] + MARKS[:1] + TRAIN[3:] + MARKS[1:]))
        self.assertEqual([line["step"] for line in run.left_out], [2])
        axes = mock.Mock()
        load_script().draw_loss(axes, run, "red", True)
        self.assertEqual([call.args[0] for call in axes.axvline.call_args_list], [2])
        self.assertIn(([3], [9.5]), [call.args for call in axes.plot.call_args_list])

    @unittest.skipUnless(HAVE_MATPLOTLIB, "python3-matplotlib is not installed")
    def test_panels_are_those_that_have_something_to_show(self):
        script = load_script()
        pyplot = script.load_pyplot()
        adaptive = script.Run(self.make_run("a", OTHERS[:1] + TRAIN, {"optimizer": {"clip_norm": 0.5}}))
        old = [{key: line[key] for key in ("type", "step", "loss", "lr", "phase")} for line in TRAIN]
        plain = script.Run(self.make_run("b", old))
        watched = script.Run(self.make_run("c", old + NORMS))
        for runs, keys in (([adaptive], ["loss", "lr", "delta", "grad_norm", "tokens_per_s"]),
                           ([plain], ["loss", "lr"]),
                           ([watched], ["loss", "lr", "update_norms"]),
                           ([plain, adaptive], ["loss", "lr", "delta", "grad_norm", "tokens_per_s"]),
                           ([watched, adaptive], ["loss", "lr", "delta", "grad_norm", "tokens_per_s", "update_norms"])):
            figure, axes = script.make_axes(pyplot, runs)
            self.assertEqual(list(axes), keys)
            for key, panel in axes.items():
                script.PANELS[key].draw(panel, runs)
            if runs == [adaptive]:
                at = [list(line.get_ydata()) for line in axes["delta"].lines]
                self.assertEqual(at, [[7.0 / step for step in range(1, 6)], [2.5, 2.5]])
                self.assertEqual(list(axes["grad_norm"].lines[1].get_ydata()), [0.5, 0.5])
            if watched in runs:
                lines = {line.get_label(): line for line in axes["update_norms"].lines}
                self.assertEqual(len(lines), 3 if runs == [watched] else 1)
                self.assertEqual(axes["update_norms"].get_yscale(), "log")
            if runs == [watched]:
                self.assertEqual(list(lines), ["embedding", "attention", "gains"])
                self.assertEqual(list(lines["attention"].get_xdata()), [0, 2, 4])
                for found, expected in zip(lines["attention"].get_ydata(), [0.2, 0.6, 1.0]):
                    self.assertAlmostEqual(found, expected)
            pyplot.close(figure)

    def test_a_run_without_adaptive_warmup_has_no_target(self):
        for index, config in enumerate([None, {}, {"schedule": {"warmup": {"type": "none"}}},
                                        {"schedule": {"warmup": {"target_loss": None}}}]):
            run = load_script().Run(self.make_run(f"r{index}", TRAIN, config))
            self.assertIsNone(run.target)
            self.assertEqual(run.name, f"r{index}")

    @unittest.skipUnless(HAVE_MATPLOTLIB, "python3-matplotlib is not installed")
    def test_errors_say_what_is_wrong(self):
        self.expect_error(self.plot(str(self.root / "absent")), "absent", "No such file")
        self.expect_error(self.plot(self.make_run("empty", [])), "no train or val lines yet")
        self.expect_error(self.plot(self.make_run("early", OTHERS)), "no train or val lines yet")
        damaged = self.make_run("damaged", [{"type": "train"}, *TRAIN])
        self.expect_error(self.plot(damaged), "metrics.jsonl' line 1")
        good = self.make_run("good", TRAIN)
        missing = str(self.root / "no" / "plot.png")
        self.expect_error(self.plot(good, "--out", missing), missing, "No such file")
        self.expect_error(self.plot(good, "--out", str(self.root / "x.what")), "x.what")
        pathlib.Path(good, "run_config.json").write_text("{")
        self.expect_error(self.plot(good), "run_config.json")
        self.assertEqual(self.plot().returncode, 2)

    def test_missing_matplotlib_names_the_package(self):
        (self.root / "matplotlib.py").write_text("raise ImportError('not here')\n")
        result = subprocess.run([sys.executable, str(SCRIPT), self.make_run("a", TRAIN)],
                                capture_output=True, text=True, check=False,
                                env={**os.environ, "PYTHONPATH": str(self.root)})
        self.expect_error(result, "python3-matplotlib")


if __name__ == "__main__":
    unittest.main()
