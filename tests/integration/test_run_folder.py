"""One run in a folder at a time; data files that hold what they held."""
import ctypes
import json
import os
import shutil
import signal
import subprocess
import time

from cli import ROOT, TRAIN_GPT, CliTest, write_tokens


class Hash128(ctypes.Structure):
    _fields_ = [('low', ctypes.c_uint64), ('high', ctypes.c_uint64)]


def xxh3_128(content):
    """What xxh128sum prints."""
    library = ctypes.CDLL('libxxhash.so.0')
    library.XXH3_128bits.restype = Hash128
    library.XXH3_128bits.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    value = library.XXH3_128bits(content, len(content))
    return f'{value.high:016x}{value.low:016x}'


class LockTest(CliTest):
    def start(self):
        """A long run that trains: it has written a checkpoint."""
        before = set(self.folder.glob('run/checkpoints/step_*'))
        self.config({'model': {'vocab_size': 256}, 'data': {'tokenizer': 'bytes'}}, run={'steps': 100000},
                    checkpoint={'every': 20})
        process = subprocess.Popen([TRAIN_GPT, 'train', '--config', 'config.json'], cwd=self.folder,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        while not set(self.folder.glob('run/checkpoints/step_*')) - before:
            self.assertIsNone(process.poll())
            time.sleep(0.005)
        return process

    def test_second_run_is_refused_and_changes_nothing(self):
        first = self.start()
        first.send_signal(signal.SIGSTOP)  # so that nothing changes but by the second
        listing = {path: path.stat().st_mtime_ns for path in (self.folder / 'run').rglob('*')}
        os.symlink('run', self.folder / 'link')
        for arguments in ([], ['--resume', 'never'], ['--set', 'run.dir=link'], ['--set', 'optimizer.lr=1']):
            result = self.train(*arguments, status=2)
            self.assertEqual(result.err.count('\n'), 1, result.err)
            folder = "'link'" if 'run.dir=link' in arguments else "'run'"
            for word in ('in use', f'process {first.pid} ', 'run.dir', folder):
                self.assertIn(word, result.err)
        self.assertEqual(listing, {path: path.stat().st_mtime_ns for path in (self.folder / 'run').rglob('*')})
        # Whoever only reads is not hindered.
        newest = max((self.folder / 'run' / 'checkpoints').glob('step_*'))
        for command in (['eval', '--data', 'data/val.bin'], ['generate', '--tokens', '5']):
            result = self.run_cli(*command, '--checkpoint', newest, '--device', 'cpu')
            self.assertEqual((result.status, result.err), (0, ''))
        plot = subprocess.run([os.environ.get('PYTHON', '/usr/bin/python3'), ROOT / 'scripts' / 'plot_run.py', 'run'],
                              cwd=self.folder, capture_output=True, text=True)
        self.assertTrue(plot.returncode == 0 or 'matplotlib' in plot.stderr, plot.stderr)
        self.train('--set', 'run.dir=other', '--set', 'run.steps=2')

    def test_end_of_any_kind_frees_the_folder(self):
        for number, status in ((signal.SIGKILL, -9), (signal.SIGTERM, 3)):
            process = self.start()
            process.send_signal(number)
            self.assertEqual(process.wait(), status)
            self.assertEqual((self.folder / 'run' / 'run.lock').exists(), status == -9)
        (self.folder / 'run' / 'checkpoints' / '.tmp_step_00000099').mkdir()
        self.assertIn('resumed after', self.run_cli_briefly())
        self.assertFalse((self.folder / 'run' / 'checkpoints' / '.tmp_step_00000099').exists())

    def run_cli_briefly(self):
        """Trains until it is under way, then stops it; its output."""
        process = subprocess.Popen([TRAIN_GPT, 'train', '--config', 'config.json'], cwd=self.folder, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.addCleanup(process.kill)
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith('resumed'):
                process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(), 3, lines)
        return ''.join(lines)


class DataTest(CliTest):
    def setUp(self):
        super().setUp()
        self.config(run={'steps': 8}, checkpoint={'every': 4, 'keep': 0})
        self.train('--set', 'run.dir=whole')
        shutil.copytree(self.folder / 'whole', self.folder / 'run')
        shutil.rmtree(self.checkpoint(8))

    def test_other_content_of_the_same_size_is_refused(self):
        for name, seed in (('train', 1), ('val', 2)):
            path = self.folder / 'data' / f'{name}.bin'
            content = path.read_bytes()
            write_tokens(path, len(content) // 2, seed=5)
            changed = path.read_bytes()
            self.assertEqual(len(content), len(changed))
            for damaged in (changed, content[:-2] + b'\0\0' if content[-2:] != b'\0\0' else content[:-2] + b'\1\0'):
                path.write_bytes(damaged)
                result = self.train(status=1)
                for word in (f'data.{name}', f'data/{name}.bin', 'step_00000004', 'restore'):
                    self.assertIn(word, result.err)
                self.assertEqual(result.err.count('\n'), 1, result.err)
            path.write_bytes(content)
        os.rename(self.folder / 'data' / 'val.bin', self.folder / 'elsewhere')
        os.symlink('../elsewhere', self.folder / 'data' / 'val.bin')  # the same content in another place
        self.assertIn('resumed after 4 updates', self.train().out)
        self.assert_same_run('whole', 'run', 8)

    def test_files_of_a_glob(self):
        self.config({'data': {'train': ['data/t*.bin']}}, run={'steps': 8, 'dir': 'glob'}, checkpoint={'every': 8})
        self.train()
        shutil.copy(self.folder / 'data' / 'val.bin', self.folder / 'data' / 'tiny.bin')
        os.truncate(self.folder / 'data' / 'tiny.bin', 16)  # less than a sequence: only the list tells
        result = self.train(status=1)
        self.assertIn('data.train now is 2 files, but 1', result.err)

    def test_checkpoint_of_an_older_version(self):
        """Of an older version: it says what it cannot check, and goes on."""
        folder = self.checkpoint(4)
        state = json.loads((folder / 'state.json').read_text())
        self.assertEqual(set(state.pop('data')), {'train', 'val'})
        for section in ('data', 'schedule', 'optimizer'):
            state['config'][section].pop('compat', None)  # keys that version did not know: their defaults hold
        del state['left_out']  # (without its spike statistics the run would go on, but log other spikes)
        del state['schedule']['previous_loss']
        text = json.dumps(state)
        (folder / 'state.json').write_text(text)
        manifest = json.loads((folder / 'manifest.json').read_text())
        manifest['files']['state.json'] = {'bytes': len(text), 'xxh3_128': xxh3_128(text.encode())}
        (folder / 'manifest.json').write_text(json.dumps(manifest))
        result = self.train()
        self.assertIn('without fingerprints', result.err)
        self.assertIn('resumed after 4 updates', result.out)
        self.assert_same_run('whole', 'run', 8)
