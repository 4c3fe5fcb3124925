"""train_gpt plan: what it says against what training takes and against hand counts."""
import json

from cli import TINY_MODEL, CliTest


class PlanTest(CliTest):
    def plan(self, *arguments, status=0):
        result = self.run_cli('plan', '--config', 'config.json', '--json', *arguments)
        self.assertEqual(result.status, status, result.out + result.err)
        return json.loads(result.out) if status == 0 else result.err

    def test_memory_is_what_training_takes(self):
        for preset, compute, micro_batch in (('adamw', 'fp32', 2), ('muon', 'bf16', 4), ('lion', 'fp64', 1)):
            self.config(run={'steps': 1}, optimizer={'preset': preset, 'lr': 1e-3}, batch={
                'micro_batch': micro_batch}, precision={'compute': compute})
            plan = self.plan()
            self.train('--set', f'run.dir="{preset}"')
            self.assertEqual(plan['memory']['total'], self.metrics(preset, 'summary')[0]['memory_bytes'], preset)
            self.assertEqual(sum(plan['memory']['parts'].values()), plan['memory']['total'])
            self.assertEqual((plan['micro_batch'], plan['micro_batches']), (micro_batch, 4 // micro_batch))

    def test_counts_by_hand(self):
        self.config(model={'n_kv_head': 4}, run={'steps': 5})
        plan = self.plan('--peak', '2', '--mfu', '0.25')
        width, hidden, vocabulary, length = (TINY_MODEL[key] for key in ('d_model', 'd_ff', 'vocab_size', 'seq_len'))
        matrices = 2 * (4 * width * width + 3 * width * hidden)
        self.assertEqual(plan['parameters'], matrices + vocabulary * width + 5 * width)
        self.assertEqual(plan['optimizer_state'], {'first': 4 * plan['parameters'], 'second': 4 * plan['parameters']})
        flops = 6 * (matrices + vocabulary * width) + 12 * 2 * width * length
        self.assertEqual(plan['flops_per_token'], flops)
        self.assertEqual(plan['tokens_per_update'], 4 * length)
        self.assertEqual(plan['tokens'], 5 * 4 * length)
        self.assertAlmostEqual(plan['epochs'], 5 * 4 / ((4000 - 1) // length), places=3)
        self.assertAlmostEqual(plan['time']['seconds'], 5 * 4 * length * flops / (0.25 * 2e12))
        self.assertFalse(plan['time']['measured'])
        self.assertEqual([self.plan()['time'][key] for key in ('measured', 'peak_flops')], [False, 1e12])
        self.assertTrue(self.plan('--set', 'log.peak_tflops=0')['time']['measured'])

    def test_activations_by_kind_and_states_by_group(self):
        self.config(model={'n_kv_head': 4}, optimizer={'preset': 'muon', 'lr': 0.01}, batch={'sequences': 4, 'micro_batch': 2})
        plan = self.plan()
        width, hidden, vocabulary, length = (TINY_MODEL[key] for key in ('d_model', 'd_ff', 'vocab_size', 'seq_len'))
        parts, rows = plan['memory']['parts'], 2 * length
        heads, layers = TINY_MODEL['n_head'], 2
        self.assertEqual(parts['activations/residual stream'], 4 * rows * width * (2 * layers + 1))
        self.assertEqual(parts['activations/norms'], 4 * rows * (width + 1) * (2 * layers + 1))
        self.assertEqual(parts['activations/attention'], 4 * rows * layers * (4 * width + heads))
        self.assertEqual(parts['activations/mlp'], 4 * rows * layers * 3 * hidden)
        self.assertEqual(parts['activations/branch and gradients'], 4 * rows * (2 + 3) * width)
        matrices = layers * (4 * width * width + 3 * width * hidden)
        groups = {group['match']: group['bytes'] for group in plan['optimizer_state_by_group']}
        self.assertEqual(groups, {'role matrix': 4 * matrices, 'any role': 8 * (plan['parameters'] - matrices)})
        self.assertEqual(sum(groups.values()), sum(plan['optimizer_state'].values()))

    def test_the_optimizer_in_words(self):
        def said(**optimizer):
            self.config(optimizer={'lr': 0.01, **optimizer})
            result = self.run_cli('plan', '--config', 'config.json')
            self.assertEqual(result.status, 0, result.err)
            return [' '.join(line.split()) for line in result.out.splitlines()]
        muon = said(preset='muon', weight_decay=0.1, clip_norm=0.5)
        for line in ('gradients clipped to the norm 0.5', 'role matrix', 'momentum nesterov, beta 0.95, start zero',
                     'norm spectral, coefficients jordan, steps 5', 'radius 0.2*sqrt(max(m,n))',
                     'decay decoupled, weight_decay 0.1, roles ["matrix","head"]'):
            self.assertIn(line, muon)
        self.assertFalse([line for line in muon if line.startswith(('post', 'step', 'alternate', 'layers of'))])
        self.assertTrue(any(line.startswith('post row_moment') for line in said(preset='normuon')))
        self.assertTrue(any(line.startswith('step clipped, limit') for line in said(preset='clipped-scion')))
        self.assertTrue(any(line.startswith('step schedule, inexact') for line in said(preset='inexact-muon')))
        self.assertTrue(any(line.startswith('alternate periodic') for line in said(preset='lionmuon')))
        self.assertTrue(any(line.startswith('layers of an update: progressive') for line in said(preset='drop-muon')))

    def test_the_largest_micro_batch_fits_and_the_next_does_not(self):
        self.config(batch={'sequences': 12, 'micro_batch': 12})
        total = self.plan()['memory']['total']
        budget = total * 0.7
        fits = self.plan('--memory', budget / 2**30)['fits']
        most = fits['largest_micro_batch']
        self.assertIn(most, range(2, 12))
        self.assertEqual(fits['of_this_batch'], max(part for part in (1, 2, 3, 4, 6, 12) if part <= most))
        for micro_batch, holds in ((most, True), (most + 1, False)):
            size = self.plan('--set', f'batch={{"sequences": {micro_batch}}}')['memory']['total']
            self.assertEqual(size <= budget, holds)
        self.assertEqual(self.plan('--memory', '1e-5')['fits']['largest_micro_batch'], 0)

    def test_ranks(self):
        self.config(batch={'sequences': 8, 'micro_batch': None})
        one, four = self.plan(), self.plan('--ranks', '4')
        self.assertEqual([plan['micro_batch'] for plan in (one, four)], [8, 2])
        self.assertEqual(one['bytes_sent_per_update'], 0)
        self.assertEqual(four['bytes_sent_per_update'], 2 * 4 * four['parameters'] * 3 / 4)
        self.assertEqual(len(four['ownership']), 4)
        self.assertEqual(sum(rank['elements'] for rank in four['ownership']), four['parameters'])
        self.assertAlmostEqual(sum(rank['cost'] for rank in four['ownership']), 1.0)
        self.assertLess(four['memory']['parts']['optimizer state'], one['memory']['parts']['optimizer state'] / 2)
        self.assertIn('expected a multiple of 3 ranks', self.plan('--ranks', '3', status=2))
        self.assertIn('expected a divisor of 2', self.plan('--ranks', '4', '--set', 'batch.micro_batch=4', status=2))
        self.assertIn('the steps of', self.run_cli('plan', '--config', 'config.json', '--ranks', '4').out)

    def test_memory_and_traffic_of_ranks(self):
        self.config(run={'steps': 20, 'threads': 1}, optimizer={'preset': 'muon', 'lr': 0.01}, batch={'micro_batch': None})
        plan = self.plan('--ranks', '2')
        self.train('--device', 'cpu', '--gpus', '2')
        summary = self.metrics(kind='summary')[0]
        self.assertEqual(plan['memory']['total'], summary['memory_bytes'])
        per_update = summary['sent_bytes'] / 20 / 2
        self.assertLess(abs(per_update / plan['bytes_sent_per_update'] - 1), 0.05)

    def test_needs_no_data_and_no_gpu(self):
        self.config(data=None, batch={'sequences': 4, 'micro_batch': None})
        config = json.loads((self.folder / 'config.json').read_text())
        del config['data'], config['run']['steps'], config['precision']
        (self.folder / 'config.json').write_text(json.dumps(config))
        plan = self.plan('--device', 'cuda', '--peak', '790')
        self.assertEqual(plan['compute'], 'bf16')
        self.assertNotIn('tokens', plan)
        said = self.run_cli('plan', '--config', 'config.json').out
        for heading in ('device', 'model', 'batch', 'optimizer', 'schedule', 'memory', 'fits', 'work', 'time'):
            self.assertIn(f'\n{heading} ', '\n' + said)

    def test_scaling(self):
        """By hand: everything one after the other, and hidden behind the gradients as far as they last."""
        self.config(optimizer={'preset': 'muon', 'lr': 0.01}, batch={'micro_batch': None})
        plan = self.plan('--ranks', '2', '--peak', '1e-3', '--mfu', '0.5', '--link', '1e-3')
        scaling, owners = plan['scaling'], plan['ownership']
        self.assertAlmostEqual(scaling['gradients_s'], plan['flops_per_update'] / 2 / 0.5e9)
        largest = 4 * max(owner['elements'] for owner in owners)
        self.assertAlmostEqual(scaling['up_s'], max(largest, plan['up_bytes_per_update']) / 1e6)
        self.assertAlmostEqual(scaling['down_s'], scaling['up_s'])
        self.assertGreater(scaling['directions_s'], 0)
        parts = sum(scaling[key] for key in ('gradients_s', 'up_s', 'directions_s', 'down_s'))
        self.assertAlmostEqual(scaling['seconds'], parts)
        busiest = max(owner['cost'] for owner in owners)
        alone = 2 * scaling['gradients_s'] + scaling['directions_s'] / busiest
        self.assertAlmostEqual(scaling['efficiency'], alone / 2 / parts)
        # Nothing hides the embedding, which is complete last and read first, nor any of one large part.
        model = json.loads((self.folder / 'config.json').read_text())['model']
        parts = plan['parameters']
        for bucket, bare in (('0.001', model['vocab_size'] * model['d_model'] / parts), ('32', 1)):
            for micro_batches in (1, 2):
                planned = self.plan('--ranks', '2', '--peak', '1e-3', '--mfu', '0.5', '--link', '1e-3', '--set',
                                    f'run.bucket_mb={bucket}', '--set', f"batch.micro_batch={plan['micro_batch'] // micro_batches}")
                exposed = 0
                for way, share in (('up', 2 / 3), ('down', 1 / 3)):
                    seconds = plan[f'{way}_bytes_per_update'] / 1e6
                    hidden = share * scaling['gradients_s'] / micro_batches
                    exposed += seconds * bare + max(0, seconds * (1 - bare) - hidden)
                self.assertAlmostEqual(planned['scaling']['overlapped_seconds'],
                                       scaling['gradients_s'] + scaling['directions_s'] + exposed)
        said = self.run_cli('plan', '--config', 'config.json', '--ranks', '2', '--peak', '1', '--link', '50').out
        self.assertIn('\nscaling    ', said)
        self.assertIsNone(self.plan('--link', '50')['scaling'])

    def test_errors(self):
        self.config(batch=None)
        config = json.loads((self.folder / 'config.json').read_text())
        del config['batch']
        (self.folder / 'config.json').write_text(json.dumps(config))
        self.assertIn('batch.sequences is missing', self.plan(status=2))
        self.config(model={'d_model': 1 << 20, 'd_ff': 1 << 20, 'n_layer': 1 << 20})
        self.assertIn('which no machine has', self.plan(status=1))
        self.config()
        self.assertIn('--mfu', self.plan('--mfu', '2', status=2))
        self.assertIn('unknown', self.plan('--device', 'tpu', status=2))
