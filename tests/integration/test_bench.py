"""train_gpt bench train: JSON lines for scripts, a table for people, on random tokens."""
import json

from cli import CliTest

PARTS = ('gemm', 'attention', 'classifier', 'elementwise', 'optimizer', 'data', 'other')
KEYS = {'what', 'config', 'preset', 'sequences', 'seq_len', 'dtype', 'threads', 'tokens_per_s', 'ms', 'ms_min',
        'gemm_library_ms', 'mfu', 'peak_memory_bytes', 'planned_bytes', 'device'} | {f'{part}_ms' for part in PARTS}


class BenchTest(CliTest):
    def bench(self, *arguments, status=0):
        result = self.run_cli('bench', 'train', '--config', 'config.json', *arguments)
        self.assertEqual(result.status, status, result.out + result.err)
        return result

    def lines(self, *arguments):
        return [json.loads(line) for line in self.bench('--json', *arguments).out.splitlines()]

    def small(self, **changes):
        """Large enough that most of a step is work; it names no data."""
        self.config({'model': {'d_model': 128, 'd_ff': 384, 'seq_len': 64}, **changes})
        config = json.loads((self.folder / 'config.json').read_text())
        del config['data'], config['run']['steps']
        (self.folder / 'config.json').write_text(json.dumps(config))

    def test_lines_for_scripts(self):
        self.small()
        lines = self.lines('--steps', '3', '--warmup', '1')
        whole = lines[-1]
        self.assertEqual(whole['what'], 'train')
        self.assertLessEqual(KEYS, set(whole))
        self.assertEqual([whole[key] for key in ('config', 'preset', 'sequences', 'seq_len', 'dtype', 'threads')],
                         ['config.json', 'adamw', 4, 64, 'fp32', 2])
        self.assertTrue(whole['device'].startswith('CPU, 2 threads'))

        self.assertAlmostEqual(sum(whole[f'{part}_ms'] for part in PARTS) / whole['ms'], 1, delta=0.03)
        for part in PARTS:
            self.assertGreater(whole[f'{part}_ms'], 0, part)
        self.assertLess(whole['other_ms'], whole['ms'] / 2)
        self.assertLessEqual(whole['ms_min'], whole['ms'])
        self.assertAlmostEqual(whole['tokens_per_s'] * whole['ms'] / 1e3, 4 * 64, places=6)
        self.assertGreater(whole['gemm_library_ms'], 0)
        self.assertGreater(whole['mfu'], 0)
        self.assertGreater(whole['planned_bytes'], 0)
        self.assertGreater(whole['peak_memory_bytes'], whole['planned_bytes'])

        parts = {line['what']: line for line in lines}
        for part in PARTS + ('gemm_library',):
            self.assertEqual(parts[f'train.{part}']['ms'], whole[f'{part}_ms'])
            self.assertEqual(parts[f'train.{part}']['device'], whole['device'])
        shapes = [line for line in lines if line['what'] == 'train.gemm.shape']
        self.assertEqual(len(shapes), 3 * 5)
        # Two micro-batches, two layers of four matrices and the head, one product forward and two backward.
        self.assertEqual(sum(line['calls'] for line in shapes), 2 * (2 * 4 + 1) * 3)
        self.assertEqual(parts['train.gemm']['calls'], 2 * (2 * 4 + 1) * 3)
        self.assertAlmostEqual(sum(line['ms'] for line in shapes), whole['gemm_ms'], places=6)
        self.assertAlmostEqual(sum(line['library_ms'] for line in shapes), whole['gemm_library_ms'], places=6)

    def test_table_for_people(self):
        self.small()
        out = self.bench('--steps', '2', '--warmup', '0').out
        head, table = out.split('\n\n', 1)
        json.loads(head.splitlines()[0])
        rows = table.split('\n\n', 1)[1].splitlines()
        for part in PARTS + ('step', 'fastest step'):
            self.assertEqual(sum(row.startswith(f'{part} ') for row in rows), 1 + (part == 'gemm'), part)
        self.assertIn('tokens/s', table)
        self.assertIn('planned', table)
        self.assertLessEqual(max(map(len, rows)), 80)

    def test_options_change_the_run(self):
        self.small(optimizer={'preset': 'muon'})
        whole = self.lines('--steps', '1', '--warmup', '0', '--threads', '1', '--set', 'batch.sequences=2',
                           '--set', 'precision.compute=bf16')[-1]
        self.assertEqual([whole[key] for key in ('preset', 'sequences', 'dtype', 'threads')], ['muon', 2, 'bf16', 1])
        self.assertTrue(whole['device'].startswith('CPU, 1 thread,'))
        self.assertFalse((self.folder / 'run').exists())

    def test_groups_of_ones_own_have_no_preset(self):
        self.small()
        groups = '[{"match": {"role": "any"}, "norm": {"type": "sign"}}]'
        whole = self.lines('--steps', '1', '--set', 'optimizer.preset=null', '--set', f'optimizer.groups={groups}')[-1]
        self.assertIsNone(whole['preset'])

    def test_wrong_use(self):
        self.small()
        for arguments in (['bench'], ['bench', 'trian'], ['bench', 'train'],
                          ['bench', 'train', '--config', 'nowhere.json'],
                          *(['bench', 'train', '--config', 'config.json', *more]
                            for more in (['--steps', '0'], ['--steps', 'x'], ['--warmup', '-1'], ['--threads', '0'],
                                         ['--device', 'cuda'], ['--set', 'batch.sequence=2']))):
            with self.subTest(arguments):
                result = self.run_cli(*arguments)
                self.assertEqual(result.status, 2, result.out + result.err)
                self.assertTrue(result.err)
                self.assertNotIn('terminate', result.err)
        result = self.bench('--set', 'batch=null', status=2)
        self.assertIn('config.json: missing: batch.sequences', result.err)

    def test_loss_that_is_not_finite(self):
        self.small(optimizer={'lr': 1e308})
        self.assertIn('not finite', self.bench(status=1).err)

    def test_help_has_examples(self):
        for arguments in (['bench', '--help'], ['bench', 'train', '--help']):
            result = self.run_cli(*arguments)
            self.assertEqual(result.status, 0)
            self.assertIn('Example', result.out)
