"""What a user can get wrong: one clear error that names the thing, and the exit status of the contract."""
import json
import resource
import shutil
import signal
import struct

from cli import CliTest


class ErrorTest(CliTest):
    def expect(self, status, *words, arguments=(), config='config.json'):
        """`train` fails with this status; its one message holds all the words."""
        result = self.train(*arguments, config=config, status=status)
        for word in words:
            self.assertIn(word, result.err)
        self.assertEqual(result.err.count('train_gpt: '), 1, result.err)
        self.assertNotIn('terminate', result.err)
        return result

    def expect_config(self, changes, *words, status=2):
        self.config(changes)
        return self.expect(status, *words)

    # -- command line --------------------------------------------------------------------------------

    def test_unknown_command(self):
        for name in ('trian', ''):
            result = self.run_cli(name, '--config', 'x.json')
            self.assertEqual(result.status, 2)
            self.assertEqual(result.err, f'train_gpt: unknown command "{name}"; train_gpt --help lists them\n')
        self.assertEqual(self.run_cli('--help').status, 0)

    def test_command_line(self):
        for arguments in ([], ['trian'], ['train'], ['train', '--config'], ['train', '--confg', 'x'],
                          ['eval', '--checkpoint', 'x'], ['generate', '--tokens', '-3']):
            with self.subTest(arguments):
                result = self.run_cli(*arguments)
                self.assertEqual(result.status, 2, result.out)
                self.assertTrue(result.err)

    def test_help_has_examples(self):
        self.assertEqual(self.run_cli('--help').status, 0)
        for command in ('train', 'schedule', 'eval', 'generate'):
            result = self.run_cli(command, '--help')
            self.assertEqual(result.status, 0)
            self.assertIn('Example', result.out)

    def test_devices(self):
        self.config()
        nowhere = {'CUDA_VISIBLE_DEVICES': ''}  # hides the GPUs of a machine that has some
        for arguments in (['--device', 'cuda'], ['--gpus', '1'], ['--gpus', '2']):
            result = self.run_cli('train', '--config', 'config.json', *arguments, environment=nowhere)
            if 'no CUDA backend' in result.err:
                self.assertEqual(result.status, 2)
            else:
                self.assertEqual((result.status, 'no GPU' in result.err), (1, True), result.err)
            self.assertEqual(result.err.count('train_gpt: '), 1, result.err)
        self.expect(2, 'tpu', 'auto', arguments=['--device', 'tpu'])

    # -- configuration -------------------------------------------------------------------------------

    def test_missing_and_malformed_config(self):
        self.expect(2, 'nowhere.json', config='nowhere.json')
        (self.folder / 'broken.json').write_text('{"run": {"steps": 8,}\n}')
        self.expect(2, 'broken.json', 'line 1', config='broken.json')

    def test_unknown_key_names_the_nearest(self):
        self.expect_config({'optimizer': {'lrr': 1}}, 'config.json', 'optimizer.lrr', 'optimizer.lr')
        self.config()
        self.expect(2, 'run.stpes', 'run.steps', arguments=['--set', 'run.stpes=3'])

    def test_wrong_type_and_range(self):
        self.expect_config({'run': {'steps': 'many'}}, 'config.json', 'run.steps', 'many')
        self.expect_config({'optimizer': {'lr': -1}}, 'optimizer.lr', '-1')
        self.config()
        self.expect(2, '--set', 'optimizer.lr', '"fast"', arguments=['--set', 'optimizer.lr=fast'])

    def test_key_of_another_type(self):
        self.expect_config({'schedule': {'warmup': {'type': 'linear', 'steps': 2, 'target_loss': 3}}},
                           'schedule.warmup.target_loss', 'adaptive')

    def test_batch_not_divisible(self):
        self.expect_config({'batch': {'sequences': 5, 'micro_batch': 2}}, 'batch', '5', '2')

    # -- data ----------------------------------------------------------------------------------------

    def test_missing_data(self):
        self.expect_config({'data': {'train': ['data/none*.bin']}}, 'data/none*.bin', status=1)

    def test_truncated_and_foreign_data(self):
        shard = struct.pack('<256i', 20240520, 1, 1000, *[0] * 253) + b'\0' * 1000
        (self.folder / 'data' / 'short.bin').write_bytes(shard)
        self.expect_config({'data': {'train': ['data/short.bin'], 'format': 'llmc'}}, 'data/short.bin',
                           '1000', status=1)
        (self.folder / 'data' / 'odd.bin').write_bytes(b'\0' * 1001)
        self.expect_config({'data': {'train': ['data/odd.bin']}}, 'data/odd.bin', status=1)
        (self.folder / 'data' / 'empty.bin').write_bytes(b'')
        self.expect_config({'data': {'train': ['data/empty.bin']}}, 'data/empty.bin', status=1)
        (self.folder / 'data' / 'tiny.bin').write_bytes(b'\0' * 6)
        self.expect_config({'data': {'train': ['data/tiny.bin']}}, 'tiny.bin', '3 tokens', '16 + 1', status=1)

    def test_token_id_too_large(self):
        tokens = [1] * 4000
        tokens[1234] = 64
        (self.folder / 'data' / 'train.bin').write_bytes(struct.pack('<4000H', *tokens))
        self.config({'run': {'steps': 300}})
        self.expect(1, 'data/train.bin', '1234', '64')

    # -- numbers -------------------------------------------------------------------------------------

    def test_loss_not_finite(self):
        self.config({'optimizer': {'lr': 1e30}, 'checkpoint': {'every': 1}, 'run': {'steps': 50}})
        result = self.expect(1, 'not finite', 'lr')
        self.assertIn('update', result.err)
        # No NaN got into a checkpoint.
        for folder in (self.folder / 'run' / 'checkpoints').iterdir():
            state = json.loads((folder / 'state.json').read_text())
            self.assertLess(state['updates'], 50)

    def test_divergence_by_each_policy(self):
        """A rate far too high breaks one update after the other: the limit ends it."""
        self.config({'optimizer': {'lr': 1e30}, 'run': {'steps': 50}})
        for policy, limit, words in (('stop', 0, ['update 1', 'run.on_nonfinite']),
                                     ('skip', 10, ['update 11', 'run.nonfinite_limit']),
                                     ('rollback', 10, ['update 11', 'run.nonfinite_limit'])):
            with self.subTest(policy):
                result = self.expect(1, 'not finite', 'lr', *words, arguments=[
                    '--set', f'run.on_nonfinite={policy}', '--set', f'run.dir={policy}'])
                self.assertEqual(result.err.count('warning: update'), limit, result.err)
                self.assertEqual([line['step'] for line in self.metrics(policy, 'train')], [0])
                left_out = self.metrics(policy, 'nonfinite')
                self.assertEqual([line['step'] for line in left_out], list(range(1, limit + 1)))
                for line in left_out:
                    self.assertEqual((line['what'], line['value']), ('gradient norm', 'nan'))
                    self.assertTrue(line['tensor'].startswith('model.'))
                self.assertFalse((self.folder / policy / 'checkpoints').exists())

    def test_broken_weights_by_each_policy(self):
        self.config({'optimizer': {'lr': 1e308}, 'checkpoint': {'every': 2}})
        for policy, word in (('stop', 'after update 0'), ('skip', 'after update 0'),
                             ('rollback', 'after update 3')):
            with self.subTest(policy):
                self.expect(1, 'weights', 'not finite', word, arguments=[
                    '--set', f'run.on_nonfinite={policy}', '--set', f'run.dir={policy}',
                    *(['--set', 'run.nonfinite_limit=3'] if policy != 'stop' else [])])
        self.assertEqual(self.metrics('rollback', 'train'), [])

    def test_limit_without_a_policy_that_uses_it(self):
        self.config()
        self.expect(2, 'run.nonfinite_limit', 'skip', arguments=['--set', 'run.nonfinite_limit=3'])

    def test_first_loss_below_target(self):
        self.config({'schedule': {'warmup': {'type': 'adaptive', 'target_loss': 9.0}}})
        self.expect(1, 'target_loss', '9')

    # -- checkpoints ---------------------------------------------------------------------------------

    def limit_file_size(self):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))

    def test_disk_full_while_saving(self):
        """A file-size limit fails writes as a full disk does. Training goes on, old checkpoints stay."""
        self.config({'checkpoint': {'every': 4, 'keep': 0}, 'run': {'steps': 12}})
        self.train('--set', 'run.dir=whole')
        self.train()
        shutil.rmtree(self.checkpoint(8))
        shutil.rmtree(self.checkpoint(12))
        result = self.train(status=1, preexec_fn=self.limit_file_size)
        self.assertIn('warning', result.err)
        self.assertIn('training goes on', result.err)
        self.assertEqual(len(self.metrics(kind='train')), 12)
        names = [folder.name for folder in (self.folder / 'run' / 'checkpoints').iterdir()]
        self.assertEqual(names, ['step_00000004'])
        self.assertIn('resumed after 4 updates', self.train().out)
        self.assertEqual((self.checkpoint(12) / 'model.safetensors').read_bytes(),
                         (self.checkpoint(12, 'whole') / 'model.safetensors').read_bytes())

    def test_run_folder_that_cannot_be_written(self):
        (self.folder / 'file').write_text('')
        self.config({'run': {'dir': 'file/run'}})
        self.expect(1, 'file/run')

    def test_truncated_and_foreign_weights(self):
        self.config()
        self.train()
        folder = self.checkpoint(8)
        weights = folder / 'model.safetensors'
        content = weights.read_bytes()
        for damage in (content[:100], content[:-10], b'', b'\xff' * 64,
                       struct.pack('<Q', 1 << 60) + content[8:]):
            weights.write_bytes(damage)
            result = self.run_cli('eval', '--checkpoint', folder, '--data', 'data/val.bin')
            self.assertEqual(result.status, 1, result.out)
            self.assertIn('model.safetensors', result.err)
        weights.write_bytes(content)
        config = json.loads((folder / 'config.json').read_text())
        config['model_type'] = 'gpt2'
        (folder / 'config.json').write_text(json.dumps(config))
        result = self.run_cli('eval', '--checkpoint', folder, '--data', 'data/val.bin')
        self.assertEqual(result.status, 1)
        self.assertIn('model_type', result.err)

    def test_init_from_another_model(self):
        self.config()
        self.train()
        self.config({'run': {'dir': 'second'}, 'init': {'from': str(self.checkpoint(8))},
                     'model': {'d_ff': 64}})
        self.expect(1, 'd_ff', '48', '64')
