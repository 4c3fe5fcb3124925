"""Files made to harm, through the program: one clean message, in time, and nothing written outside the run folder."""
import json
import os
import pty
import re
import subprocess
import time

from cli import TRAIN_GPT, CliTest

UNCLEAN = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffd]')


class HostileTest(CliTest):
    def expect(self, status, *words, arguments=('train', '--config', 'config.json')):
        result = self.run_cli(*arguments)
        self.assertEqual(result.status, status, result.out + result.err)
        for word in words:
            self.assertIn(word, result.err)
        self.assertIsNone(UNCLEAN.search(result.out + result.err), result.out + result.err)
        return result

    def trained(self):
        self.config({'model': {'vocab_size': 256}, 'data': {'tokenizer': 'bytes'}})
        self.train()
        return self.checkpoint(8)

    def test_files_that_include_each_other_twice(self):
        for i in range(30):
            (self.folder / f'{i}.json').write_text(json.dumps({'include': [f'{i + 1}.json'] * 2}))
        (self.folder / '30.json').write_text('{}')
        start = time.time()
        self.expect(2, '1000 files', arguments=['train', '--config', '0.json'])
        self.assertLess(time.time() - start, 20)

    def test_escapes_in_names(self):
        escape = '\x1b[2J\u009b2J\u202e'
        self.config(run={'name': escape, 'dir': 'first'})
        self.assertIn('\\x1b[2J', self.expect(0).out)
        self.config(run={escape: 1})
        self.expect(2, '\\x1b[2J')
        folder = self.trained()
        (folder / 'config.json').write_text(json.dumps({'model_type': escape}))
        self.expect(1, 'config.json', 'model_type', arguments=['eval', '--checkpoint', folder, '--data', 'data/val.bin'])
        (folder / 'manifest.json').write_text('{"format": 1, "files": {"' + '\x7f' * 3 + '": [')
        result = self.run_cli('train', '--config', 'config.json')
        self.assertIsNone(UNCLEAN.search(result.out + result.err), result.out + result.err)
        self.assertIn('manifest.json is damaged', result.err)

    def test_values_too_deep_to_print(self):
        folder = self.trained()
        deep = '[' * 200000 + ']' * 200000
        for name in ('config.json', 'state.json', 'manifest.json'):
            (folder / name).write_text('{"model_type": ' + deep + '}')
        self.expect(1, 'config.json', 'nested deeper',
                    arguments=['eval', '--checkpoint', folder, '--data', 'data/val.bin'])
        self.expect(1, 'state.json', 'nested deeper', arguments=['generate', '--checkpoint', folder])
        self.expect(1, 'manifest.json', 'nested deeper')
        header = f'{{"w": {{"dtype": "F32", "shape": [{deep}], "data_offsets": [0, 0]}}}}'.encode()
        self.config({'model': {'vocab_size': 256}}, run={'dir': 'second'})
        self.train()
        folder = self.checkpoint(8, 'second')
        (folder / 'model.safetensors').write_bytes(len(header).to_bytes(8, 'little') + header)
        self.expect(1, 'model.safetensors', 'nested deeper',
                    arguments=['eval', '--checkpoint', folder, '--data', 'data/val.bin'])

    def test_sizes_that_the_weights_do_not_have(self):
        """No memory is taken for 1.8 billion weights that are not in the file."""
        folder = self.trained()
        config = json.loads((folder / 'config.json').read_text())
        config.update(hidden_size=8192, intermediate_size=16384, vocab_size=65536, head_dim=2048)
        (folder / 'config.json').write_text(json.dumps(config))
        with subprocess.Popen([TRAIN_GPT, 'eval', '--checkpoint', folder, '--data', 'data/val.bin'], cwd=self.folder,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            message = process.stderr.read()
            usage = os.wait4(process.pid, 0)[2]
            process.returncode = 1
        self.assertIn('has shape', message)
        self.assertLess(usage.ru_maxrss, 500_000)  # KiB

    def test_name_that_leads_out(self):
        config = json.loads((self.folder / self.config()).read_text())
        del config['run']['dir']
        config['run']['name'] = '../../outside'
        (self.folder / 'config.json').write_text(json.dumps(config))
        self.expect(2, 'run.name')
        self.assertFalse((self.folder.parent / 'outside').exists())

    def test_generated_text_on_a_terminal(self):
        """A model of bytes that knows nothing writes control characters: all of them into a pipe, none to a terminal."""
        arguments = [TRAIN_GPT, 'generate', '--checkpoint', str(self.trained()), '--tokens', '300', '--temperature', '5']
        exact = subprocess.run(arguments, cwd=self.folder, capture_output=True, check=True).stdout
        self.assertIn(b'\x1b', exact)
        leader, follower = pty.openpty()
        with subprocess.Popen(arguments, cwd=self.folder, stdout=follower, stderr=follower) as process:
            os.close(follower)
            shown = b''
            try:
                while piece := os.read(leader, 4096):
                    shown += piece
            except OSError:  # the other end is closed
                pass
        os.close(leader)
        self.assertEqual(process.returncode, 0)
        text = shown.decode('utf-8').replace('\r\n', '\n')
        self.assertIsNone(UNCLEAN.search(text), repr(text))
        self.assertIn('\\x1b', text)
