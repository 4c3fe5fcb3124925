"""Three updates of every published run (configs/paper) at a small width."""
from cli import CliTest
from integration.test_paper import RUNS, three_updates


class PaperRunsTest(CliTest):
    def test_all(self):
        self.assertEqual(len(RUNS), 57)
        for path in RUNS:
            with self.subTest(path.name):
                three_updates(self, path)
