"""The pages of the studies, dev/docs/warmup_study.md and others, say what their results hold."""
import importlib.util
import json
import re
import subprocess
import sys
import unittest

from cli import ROOT, TRAIN_GPT

sys.path[:0] = [str(ROOT / 'dev' / 'study'), str(ROOT / 'scripts')]
import communication_report  # noqa: E402
import communication_study  # noqa: E402
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
        # Every preset is in the table or said to be in none, and every run of the table in the file.
        apart = page.partition('### Not part of the comparison')[2].partition('\n## ')[0]
        others = re.findall(r'^\| `([\w-]+)`', apart, re.M)
        presets = {path.stem for path in (ROOT / 'configs' / 'optimizer').glob('*.json')}
        compared = optimizer_report.presets(results)
        self.assertEqual(sorted([*compared, *others]), sorted(presets))
        for preset in compared:
            self.assertEqual(len(optimizer_report.best_runs(results, preset)[0]), 3, preset)

    def test_the_page_of_the_communication_too(self):
        results = json.loads((ROOT / 'dev' / 'results' / 'communication_study.json').read_text())
        page = (ROOT / 'dev' / 'docs' / 'communication.md').read_text()
        self.assertEqual(study_report.fill(page, communication_report.tables(results)), page)
        # The runs are those that the study names, all with the rate of the baseline.
        rows = results['stages']['ef21']
        self.assertEqual([(row['case'], row['seed']) for row in rows],
                         [(name, [seed]) for name, (_, seeds) in communication_study.COMPRESSED.items() for seed in seeds])
        self.assertEqual(len(communication_report.baseline(results)), 3)

    def test_bytes_of_the_study(self):
        """Uncompressed, every rank sends each block of the three others to its owner, and its own to three: with headers."""
        results = json.loads((ROOT / 'dev' / 'results' / 'communication_study.json').read_text())
        everything = 3 * 4 * results['parameters']
        whole = communication_report.baseline(results)[0]
        for way in communication_report.WAYS:
            first, rest = whole[way]
            self.assertTrue(everything <= first <= 1.001 * everything, first)
            self.assertEqual(rest, first * (whole['updates'] - 1))
        for row in results['stages']['ef21']:
            self.assertEqual(row['up_bytes'][0], whole['up_bytes'][0])  # the first update sends all
            for way, compressed in (('up', not row['case'].startswith('down')), ('down', not row['case'].startswith('up'))):
                sent, all_of_it = (of[f'{way}_bytes'][1] for of in (row, whole))
                self.assertTrue(sent < all_of_it / 3 if compressed else sent == all_of_it, row['name'])

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
