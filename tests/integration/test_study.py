"""dev/docs/warmup_study.md says what dev/results/warmup_study.json holds."""
import json
import sys
import unittest

from cli import ROOT

sys.path[:0] = [str(ROOT / 'dev' / 'study'), str(ROOT / 'scripts')]
import study_report  # noqa: E402

RESULTS = json.loads((ROOT / 'dev' / 'results' / 'warmup_study.json').read_text())


class StudyTest(unittest.TestCase):
    def test_the_page_has_the_tables_of_the_results(self):
        page = (ROOT / 'dev' / 'docs' / 'warmup_study.md').read_text()
        self.assertEqual(study_report.fill(page, study_report.tables(RESULTS)), page)

    def test_paired_differences(self):
        rows = [[{'seed': [seed], 'val_loss': loss} for seed, loss in enumerate(losses)]
                for losses in ((1.0, 2.0, 4.0), (0.5, 1.0, 2.0))]
        difference, error = study_report.paired(*rows)
        self.assertAlmostEqual(difference, 3.5 / 3)
        self.assertAlmostEqual(error, ((2 / 3) ** 2 + (1 / 6) ** 2 + (5 / 6) ** 2) ** 0.5 / 2 ** 0.5 / 3 ** 0.5)
        rows[0][1]['val_loss'] = None  # a run that diverged can never look good
        self.assertEqual(study_report.paired(*rows)[0], float('inf'))
