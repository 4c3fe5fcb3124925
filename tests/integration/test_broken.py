"""Broken surroundings: pipes, full devices, files that change, absurd sizes. One message, never a crash."""
import json
import os
import pathlib
import signal
import struct
import subprocess
import time

from cli import TRAIN_GPT, CliTest, write_tokens


class BrokenTest(CliTest):
    def expect(self, status, *words, arguments):
        result = self.run_cli(*arguments)
        self.assertEqual(result.status, status, result.out + result.err)
        for word in words:
            self.assertIn(word, result.err)
        self.assertLess(len(result.err), 600)
        return result

    def expect_training(self, status, *words, arguments=()):
        return self.expect(status, *words, arguments=['train', '--config', 'config.json', *arguments])

    def trained(self, **changes):
        """A checkpoint of a byte model."""
        self.config({'model': {'vocab_size': 256}, 'data': {'tokenizer': 'bytes'}, **changes})
        self.train()
        return self.checkpoint(8)

    def start(self, *arguments):
        """A long run that has written metrics."""
        self.config(run={'steps': 100000})
        process = subprocess.Popen([TRAIN_GPT, 'train', '--config', 'config.json', *arguments], cwd=self.folder,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.addCleanup(process.kill)
        metrics = self.folder / 'run' / 'metrics.jsonl'
        while not metrics.exists() or metrics.stat().st_size < 500:
            self.assertIsNone(process.poll())
            time.sleep(0.005)
        return process

    # -- what is known at the start is said at the start -------------------------------------------------

    def test_prompt_outside_the_vocabulary(self):
        self.config({'data': {'tokenizer': 'bytes'}, 'eval': {'sample': 'hello'}})
        self.expect_training(2, 'eval.sample', '104', '64')
        self.assertFalse((self.folder / 'run').exists())

    def test_missing_tokenizer_of_a_sample(self):
        self.config({'data': {'tokenizer': 'nowhere'}, 'eval': {'sample': 'hello'}})
        self.expect_training(2, 'nowhere')
        self.assertFalse((self.folder / 'run').exists())

    def test_models_beyond_memory(self):
        huge = 1 << 20
        for model, batch in (({'d_model': huge}, 1), ({'n_layer': huge, 'd_ff': huge}, 1),
                             ({'d_ff': huge, 'seq_len': huge}, huge),
                             ({'d_model': huge, 'd_ff': huge, 'n_layer': huge, 'seq_len': huge}, huge)):
            with self.subTest(model=model, batch=batch):
                self.config({'model': model, 'batch': {'sequences': batch, 'micro_batch': batch}})
                start = time.time()
                self.expect_training(1, 'out of memory', 'are free')
                self.assertLess(time.time() - start, 20)

    def test_names_that_no_system_takes(self):
        self.config({'run': {'name': 'a\0b'}})
        self.expect_training(2, 'run.name')
        self.config({'include': 'a\0b'})
        self.expect_training(2, 'include')
        self.config()
        self.expect(2, 'File name too long', arguments=['train', '--config', 'x' * 300])
        self.expect_training(2, 'no such folder', arguments=['--resume', 'x' * 300])

    def test_numbers_of_options(self):
        folder = self.trained()
        for option, values in {'--tokens': ('0', '1e3', '9' * 30), '--temperature': ('nan', '-1', 'inf'),
                               '--top-k': ('-1', '9' * 30), '--top-p': ('nan', '0', '1.1'),
                               '--seed': ('-1', '9' * 30, '7x'), '--threads': ('0', '9' * 9)}.items():
            for value in values:
                with self.subTest(option=option, value=value):
                    self.expect(2, option, 'expected', value,
                                arguments=['generate', '--checkpoint', folder, option, value])
        for option in ('--batch', '--seq-len', '--threads'):
            self.expect(2, option, 'expected', arguments=['eval', '--checkpoint', folder, '--data',
                                                          'data/val.bin', option, '0'])

    # -- numbers that are not finite ---------------------------------------------------------------------

    def test_last_update_breaks_the_model(self):
        self.config({'optimizer': {'lr': 1e308}, 'run': {'steps': 1}})
        self.expect_training(1, 'not finite', 'lr')
        self.assertFalse((self.folder / 'run' / 'checkpoints').exists())

    def test_broken_weights_are_not_saved(self):
        self.config({'optimizer': {'lr': 1e308}, 'checkpoint': {'every': 1}})
        self.expect_training(1, 'weights', 'not finite')
        self.assertFalse((self.folder / 'run' / 'checkpoints').exists())

    def test_start_from_broken_weights(self):
        weights = self.trained() / 'model.safetensors'
        content = bytearray(weights.read_bytes())
        content[-4:] = struct.pack('<f', float('nan'))
        weights.write_bytes(content)
        self.config({'model': {'vocab_size': 256}, 'init': {'from': str(weights.parent)},
                     'run': {'dir': 'second'}})
        self.expect_training(1, 'init.from', 'model.', 'nan')

    # -- standard streams --------------------------------------------------------------------------------

    def test_result_that_cannot_be_printed(self):
        folder = self.trained()
        for arguments in (['eval', '--checkpoint', folder, '--data', 'data/val.bin'],
                          ['generate', '--checkpoint', folder, '--tokens', '3'],
                          ['schedule', '--config', 'config.json']):
            with open('/dev/full', 'w') as full:
                result = subprocess.run([TRAIN_GPT, *arguments], cwd=self.folder, stdout=full,
                                        stderr=subprocess.PIPE, text=True)
            self.assertEqual(result.returncode, 1, arguments)
            self.assertIn('standard output', result.stderr)

    def test_closed_streams_do_not_end_up_in_files(self):
        self.config()
        for number, closed in enumerate(('>&-', '2>&-', '<&-', '<&- >&- 2>&-')):
            command = f'{TRAIN_GPT} train --config config.json --set run.dir=run{number} {closed}'
            subprocess.run(command, shell=True, cwd=self.folder, check=True, capture_output=True)
            self.assertEqual(len(self.metrics(f'run{number}', 'train')), 8)

    def test_reader_that_goes_away(self):
        """Training goes on; a text that nobody reads is not written to its end."""
        folder = self.trained()
        for command, status in (('train --config config.json --set run.dir=second', '0'),
                                (f'generate --checkpoint {folder} --tokens 100000000', '1')):
            pipe = f'{TRAIN_GPT} {command} | head -c 1; status=${{PIPESTATUS[0]}}; echo; echo $status'
            result = subprocess.run(['bash', '-c', pipe], cwd=self.folder, capture_output=True, timeout=60)
            self.assertEqual(result.stdout.decode(errors='replace').splitlines()[-1], status)

    # -- files -------------------------------------------------------------------------------------------

    def test_pipe_in_place_of_a_file(self):
        os.mkfifo(self.folder / 'pipe')
        self.config({'data': {'train': ['pipe']}})
        self.expect_training(1, 'pipe', 'not a regular file')
        folder = self.trained()
        (folder / 'model.safetensors').unlink()
        os.mkfifo(folder / 'model.safetensors')
        self.expect(1, 'model.safetensors', 'not a regular file',
                    arguments=['eval', '--checkpoint', folder, '--data', 'data/val.bin'])

    def test_eval_of_few_tokens(self):
        folder = self.trained()
        for count in (0, 1, 2, 3, 17, 18):
            (self.folder / 'few.bin').write_bytes(struct.pack(f'<{count}H', *range(count)))
            arguments = ['eval', '--checkpoint', folder, '--data', 'few.bin', '--json']
            if count < 2:
                self.expect(1, 'few.bin', arguments=arguments)
            else:
                self.assertEqual(json.loads(self.expect(0, arguments=arguments).out)['tokens'], count - 1)

    def test_data_that_changed_between_runs(self):
        self.config(run={'steps': 12}, checkpoint={'every': 4, 'keep': 0})
        self.train()
        for path in self.checkpoint(12).iterdir():
            path.unlink()
        self.checkpoint(12).rmdir()
        write_tokens(self.folder / 'data' / 'train.bin', 3000)
        self.expect_training(1, 'data.train', '187', '249')
        write_tokens(self.folder / 'data' / 'train.bin', 4000)
        self.assertIn('resumed after 8 updates', self.train().out)

    def test_data_that_shrinks_during_a_run(self):
        write_tokens(self.folder / 'data' / 'train.bin', 100000)
        process = self.start()
        os.truncate(self.folder / 'data' / 'train.bin', 4096)
        output = process.communicate(timeout=60)[0]
        self.assertEqual(process.returncode, 1, output)
        self.assertIn('data/train.bin: became shorter', output)

    def test_terminal_that_goes_away(self):
        process = self.start()
        process.send_signal(signal.SIGHUP)
        output = process.communicate(timeout=60)[0]
        self.assertEqual(process.returncode, 3, output)
        self.assertEqual(len(list(pathlib.Path(self.folder / 'run' / 'checkpoints').iterdir())), 1)
