"""scripts/report.py: what it says of real and of odd runs, and that its page needs nothing else."""
import contextlib
import html.parser
import importlib.util
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import unittest
from unittest import mock

from cli import ROOT, TRAIN_GPT, CliTest

sys.path.insert(0, str(ROOT / 'scripts'))
import report  # noqa: E402

HAVE_MATPLOTLIB = importlib.util.find_spec('matplotlib') is not None
PYTHON = os.environ.get('PYTHON') or sys.executable
VOID = {'meta', 'br', 'link', 'img', 'hr', 'input'}
CURVES = ['Loss', 'Learning rate and phases', 'Gap to the target loss', 'Gradient norm', 'Speed']


class Page(html.parser.HTMLParser):
    """The text of a page by heading; complains of tags that do not close and of anything from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.references, self.wrong = [], [], [], []
        self.heading, self.parts, self.labels = 'top', {'top': ''}, []
        self.feed(text)
        self.close()
        self.wrong += [f'{tag} is open' for tag in self.open]
        self.wrong += [f'no id {name}' for name in self.references if name not in self.ids]
        self.wrong += [f'id {name} twice' for name in set(self.ids) if self.ids.count(name) > 1]
        self.wrong += re.findall(r'url\((?!#)[^)]*\)|@import[^;]*', text)

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        if tag in ('script', 'link', 'iframe', 'object', 'embed', 'base', 'image', 'img'):
            self.wrong.append(f'<{tag}>')
        for key, value in attributes:
            if key in ('src', 'href', 'xlink:href', 'srcset', 'action', 'data', 'poster'):
                if value.startswith('#'):
                    self.references.append(value[1:])
                elif not value.startswith('data:'):
                    self.wrong.append(f'{key}={value}')
            if key == 'id':
                self.ids.append(value)
            if tag == 'svg' and key == 'aria-label':
                self.labels.append(value)
            self.references += re.findall(r'url\(#([^)]*)\)', value or '')

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f'</{tag}>')

    def handle_data(self, data):
        if self.open and self.open[-1] == 'h2':
            self.heading = data
        self.parts[self.heading] = self.parts.get(self.heading, '') + data + ' '


@unittest.skipUnless(HAVE_MATPLOTLIB, 'python3-matplotlib is not installed')
class ReportTest(CliTest):
    def report(self, run, *arguments, status=0):
        """Runs main() in this process, so that matplotlib is imported once."""
        out, err = io.StringIO(), io.StringIO()
        command = ['report.py', str(self.folder / run), '--program', TRAIN_GPT, *map(str, arguments)]
        with mock.patch.object(sys, 'argv', command), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            self.assertEqual(report.main(), status, err.getvalue())
        return out.getvalue() + err.getvalue()

    def page(self, path):
        page = Page((self.folder / path).read_text())
        self.assertEqual(page.wrong, [])
        return page

    def make(self, name, lines, config=None):
        folder = self.folder / name
        folder.mkdir()
        (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
        if config:
            (folder / 'run_config.json').write_text(json.dumps(config))
        return name

    def test_a_real_run(self):
        self.config(model={'vocab_size': 256}, run={'name': 'mine <&>', 'note': 'try "this"'}, data={'tokenizer': 'bytes'},
                    eval={'every': 4, 'sample': 'It'}, optimizer={'preset': 'muon', 'clip_norm': 0.5},
                    schedule={'warmup': {'type': 'adaptive', 'target_loss': 2.0}})
        self.train()
        samples = self.metrics(kind='sample')
        self.assertEqual([line['step'] for line in samples], [4, 8])
        self.assertTrue(samples[0]['text'].startswith('It'))
        self.assertEqual(self.report('run'), f'{self.folder}/run/report.html\n')
        page = self.page('run/report.html')
        self.assertEqual(page.labels, CURVES)
        self.assertEqual(list(page.parts), ['top', 'What it does', 'Curves', 'Validation loss', 'Sampled texts',
                                            'Configuration'])
        summary = self.metrics(kind='summary')[0]
        for text in ('mine <&>', 'finished', 'try "this"', f'{summary["val_loss"]:.4f}', '8 of 8', 'updates', 'memory'):
            self.assertIn(text, page.parts['top'])
        # As plan tells it.
        for text in ('role matrix', 'momentum nesterov, beta 0.95', 'norm spectral, coefficients'):
            self.assertIn(text, page.parts['What it does'])
        self.assertIn('by the loss above 2,', page.parts['What it does'])
        self.assertIn('after 8 updates', page.parts['Sampled texts'])
        self.assertIn('"clip_norm": 0.5', page.parts['Configuration'])
        # Nothing of the second time it is made differs.
        first = (self.folder / 'run/report.html').read_bytes()
        self.report('run', '-o', self.folder / 'again.html')
        self.assertEqual((self.folder / 'again.html').read_bytes(), first)
        # Where the program is not built.
        self.report('run', '-o', self.folder / 'b.html', '--program', '/absent')
        words = self.page('b.html').parts['What it does']
        for text in ('2 layers, width 32', '4 sequences of 16 tokens', 'muon, lr 0.01', 'warm-up adaptive (target loss 2)'):
            self.assertIn(text, words)

    def test_what_went_wrong(self):
        train = {'type': 'train', 'tokens': 64, 'lr': 0.1, 'phase': 'constant'}
        lines = [{**train, 'step': step, 'loss': 3.0 if step != 4 else None} for step in range(6)]
        lines += [{'type': 'nonfinite', 'step': 2, 'what': 'loss', 'value': 'nan', 'tensor': 'a<b'}]
        lines += [{'type': 'spike', 'step': 3 + i, 'loss': 9.5, 'expected': 3.0, 'tensor': None, 'ratio': 2.0}
                  for i in range(30)]
        self.report(self.make('odd', lines))
        page = self.page('odd/report.html')
        wrong = page.parts['Warnings']
        for text in ('Update 2 was left out: loss is nan, in a<b', 'spike at update 3: 9.5000, 3.0000 was expected',
                     'and 12 more'):
            self.assertIn(text, wrong)
        self.assertEqual(page.labels, CURVES[:2])
        self.assertIn('not finished: 6 of ? updates', page.parts['top'])
        self.assertNotIn('Configuration', page.parts)

    def test_errors(self):
        self.assertIn('give the folder of a run', self.report('absent', status=1))
        good = self.make('good', [{'type': 'val', 'step': 0, 'loss': 3.0}])
        self.assertIn("cannot write '/absent/x.html'", self.report(good, '-o', '/absent/x.html', status=1))
        pathlib.Path(self.folder, 'matplotlib.py').write_text("raise ImportError('not here')\n")
        result = subprocess.run([PYTHON, ROOT / 'scripts/report.py', good], cwd=self.folder, capture_output=True, text=True,
                                check=False, env={**os.environ, 'PYTHONPATH': str(self.folder)})
        self.assertEqual((result.returncode, len(result.stderr.splitlines())), (1, 1), result.stderr)
        self.assertIn('python3-matplotlib', result.stderr)

    def test_the_page_check_sees_what_comes_from_elsewhere(self):
        for text in ('<img src="x.png">', '<a href="https://x">', '<p></b></p>', '<p style="background: url(x.png)"></p>',
                     '<use href="#a"></use>', '<i id="a"></i><i id="a"></i>'):
            self.assertNotEqual(Page(text).wrong, [], text)
