"""scripts/export_hf.py: its tokenizer.json, read back and used by an encoder that knows nothing else, gives the golden
ids of tests/data/tokenizer. dev/reference/check_hf.py asks transformers the same where it is installed."""
import json
import os
import shutil
import subprocess
import sys
import unittest

from cli import ROOT, CliTest

sys.path.insert(0, str(ROOT / 'scripts'))
import export_hf  # noqa: E402
from corpus import bpe  # noqa: E402

PYTHON = os.environ.get('PYTHON') or sys.executable
DATA = ROOT / 'tests' / 'data' / 'tokenizer'


class ExportTest(CliTest):
    def export(self, *arguments, status=0):
        result = subprocess.run([PYTHON, ROOT / 'scripts' / 'export_hf.py', *map(str, arguments)], cwd=self.folder,
                                capture_output=True, text=True, check=False)
        self.assertEqual(result.returncode, status, result.stderr)
        return result.stdout if status == 0 else result.stderr

    def vocabulary_of(self, content):
        """A vocabulary from nothing but the file that transformers reads."""
        alphabet = bpe.byte_alphabet()

        def to_bytes(written):
            return bytes(alphabet[letter] for letter in written)
        ids = {to_bytes(token): number for token, number in content['model']['vocab'].items()}
        pairs = {tuple(map(to_bytes, pair)): rank for rank, pair in enumerate(content['model']['merges'])}
        return bpe.Vocabulary('read back', ids, pairs, None, len(ids))

    def test_the_golden_ids(self):
        cases = json.loads((DATA / 'cases.json').read_text())
        merges = []
        for source in ('tiny.tiktoken', 'merges'):
            export_hf.write_tokenizer(str(DATA / source), 1024, str(self.folder))
            content = json.loads((self.folder / 'tokenizer.json').read_text())
            encode = bpe.Encoder(self.vocabulary_of(content))
            for case in cases:
                self.assertEqual(encode(case['text']), case['ids'], case['text'])
            merges.append(content['model']['merges'])
            self.assertEqual([token['content'] for token in content['added_tokens']], ['<|endoftext|>'])
            self.assertNotIn(content['added_tokens'][0]['id'], content['model']['vocab'].values())
            self.assertTrue(content['pre_tokenizer']['use_regex'])
            self.assertEqual(content['model']['ignore_merges'], source == 'tiny.tiktoken')
        # Merges found from the ranks of a .tiktoken file are those that the other file lists.
        self.assertEqual(*merges)
        self.assertGreater(len(merges[0]), 100)

    def test_a_checkpoint_of_bytes(self):
        self.config(model={'vocab_size': 256}, run={'steps': 1}, data={'tokenizer': 'bytes'})
        self.train()
        checkpoint = self.checkpoint(1)
        self.assertIn('tokenizer bytes', self.export(checkpoint, '--out', 'a/b'))
        out = self.folder / 'a/b'
        for name in ('config.json', 'model.safetensors'):
            self.assertEqual((out / name).read_bytes(), (checkpoint / name).read_bytes())
        content = json.loads((out / 'tokenizer.json').read_text())
        self.assertEqual((content['model']['merges'], content['added_tokens']), ([], []))
        self.assertEqual(self.vocabulary_of(content).ids, {bytes([byte]): byte for byte in range(256)})
        self.assertFalse(content['pre_tokenizer']['use_regex'])
        # It is a model that this program opens again.
        shutil.rmtree(self.folder / 'run')
        self.assertEqual(self.run_cli('eval', '--checkpoint', out, '--data', 'data/val.bin', '--device', 'cpu').status, 0)

    def test_errors(self):
        self.config(run={'steps': 1})
        self.train()
        checkpoint = self.checkpoint(1)
        self.assertIn('--tokenizer none', self.export(checkpoint, '--out', 'x', status=2))
        self.assertIn('vocabulary is 64', self.export(checkpoint, '--out', 'x', '--tokenizer', 'bytes', status=2))
        self.assertIn('not found', self.export(checkpoint, '--out', 'x', '--tokenizer', 'nowhere', status=2))
        self.assertIn('give a checkpoint', self.export('run', '--out', 'x', status=2))
        self.assertFalse((self.folder / 'x').exists())
        self.assertNotIn('tokenizer', self.export(checkpoint, '--out', 'x', '--tokenizer', 'none'))
        self.assertEqual({path.name for path in (self.folder / 'x').iterdir()}, {'config.json', 'model.safetensors'})


if __name__ == '__main__':
    unittest.main()
