"""dev/docs/warmup_study.md, optimizers.md and estimator_rates.md say what the results of their studies hold."""
import importlib.util
import json
import subprocess
import sys
import unittest

from cli import ROOT, TRAIN_GPT

sys.path[:0] = [str(ROOT / 'dev' / 'study'), str(ROOT / 'scripts')]
import optimizer_report  # noqa: E402
import study_report  # noqa: E402

RESULTS = json.loads((ROOT / 'dev' / 'results' / 'warmup_study.json').read_text())


class StudyTest(unittest.TestCase):
    def test_the_page_has_the_tables_of_the_results(self):
        page = (ROOT / 'dev' / 'docs' / 'warmup_study.md').read_text()
        self.assertEqual(study_report.fill(page, study_report.tables(RESULTS)), page)

    def test_the_page_of_the_optimizers_too(self):
        results = json.loads((ROOT / 'dev' / 'results' / 'optimizer_study.json').read_text())
        page = (ROOT / 'dev' / 'docs' / 'optimizers.md').read_text()
        self.assertEqual(study_report.fill(page, optimizer_report.tables(results)), page)
        # Every preset is in the table, and every run of the table in the file.
        # (estimators and communication have a page of their own).
        files = (ROOT / 'configs' / 'optimizer').glob('*.json')
        presets = {path.stem for path in files if not {'estimator', 'communication'} & set(json.loads(path.read_text()))}
        self.assertEqual(set(optimizer_report.presets(results)), presets)
        for preset in presets:
            self.assertEqual(len(optimizer_report.best_runs(results, preset)[0]), 3, preset)

    def test_the_page_of_many_ranks(self):
        script = ROOT / 'dev' / 'study' / 'scaling.py'
        self.assertEqual(subprocess.run([sys.executable, script, '--train-gpt', TRAIN_GPT, '--check']).returncode, 0)

    @unittest.skipUnless(importlib.util.find_spec('numpy'), 'python3-numpy is not installed')
    def test_the_page_of_the_estimators(self):
        import estimator_rates
        results = json.loads(estimator_rates.RESULTS.read_text())
        page = estimator_rates.PAGE.read_text()
        self.assertEqual(study_report.fill(page, estimator_rates.tables(results)), page)

    def test_paired_differences(self):
        rows = [[{'seed': [seed], 'val_loss': loss} for seed, loss in enumerate(losses)]
                for losses in ((1.0, 2.0, 4.0), (0.5, 1.0, 2.0))]
        difference, error = study_report.paired(*rows)
        self.assertAlmostEqual(difference, 3.5 / 3)
        self.assertAlmostEqual(error, ((2 / 3) ** 2 + (1 / 6) ** 2 + (5 / 6) ** 2) ** 0.5 / 2 ** 0.5 / 3 ** 0.5)
        rows[0][1]['val_loss'] = None  # a run that diverged can never look good
        self.assertEqual(study_report.paired(*rows)[0], float('inf'))
