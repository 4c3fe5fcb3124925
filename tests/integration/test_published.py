"""The published behaviours as users switch them on: configs/compat in `schedule` and in training."""
import json

from cli import ROOT, CliTest

COMPAT = ROOT / 'configs' / 'compat'
LOSSES = [10.95, 10.9, 10.5, 10, 9, 8, 7, 6, 5.6, 5.5, 5.4] + 9 * [5.3]
OFFICIAL = [1e-3, 1e-5, 1.01257595e-5, 1.12494618e-5, 1.30269207e-5, 1.87264888e-5, 3.1397377e-5,
            7.38324402e-5, 5.10172583e-4, 9.33019401e-4, 8.53568035e-4, 7.50025e-4, 6.29446582e-4,
            5.0005e-4, 3.70653418e-4, 2.50075e-4, 1.46531965e-4, 6.70805994e-5, 1.71353831e-5, 1e-7]
BASELINE = [1e-5, 1.54982143e-4, 5.05e-4, 8.55017857e-4, 1e-3, 9.89073811e-4, 9.56772772e-4,
            9.04508593e-4, 8.34565469e-4, 7.5000025e-4, 6.54508843e-4, 5.52264679e-4, 4.47736321e-4,
            3.45492157e-4, 2.5000075e-4, 1.65435531e-4, 9.54924073e-5, 4.3228228e-5, 1.09271887e-5,
            1e-9]


class PublishedScheduleTest(CliTest):
    def schedule(self, compat, schedule, model='llama-124m', preset='muon', lr=1e-3, steps=20,
                 losses=LOSSES, target=None):
        config = {'include': [str(ROOT / 'configs' / 'model' / f'{model}.json'),
                              str(COMPAT / compat)],
                  'run': {'steps': steps}, 'optimizer': {'preset': preset, 'lr': lr},
                  'schedule': schedule}
        (self.folder / 'schedule.json').write_text(json.dumps(config))
        (self.folder / 'losses').write_text(json.dumps(losses))
        result = self.run_cli('schedule', '--config', 'schedule.json', '--losses', 'losses',
                              '--loss0', str(losses[0]), '--json')
        self.assertEqual(result.status, 0, result.err)
        return json.loads(result.out)

    def assert_rates(self, rates, expected):
        self.assertEqual(len(rates), len(expected))
        for update, (rate, value) in enumerate(zip(rates, expected)):
            self.assertLess(abs(rate / value - 1), 1e-8, f'update {update}: {rate}, not {value}')

    def test_vectors_of_the_published_scheduler(self):
        official = self.schedule('official.json', {'warmup': {'target_loss': 3.2}})
        self.assert_rates(official['lr'], OFFICIAL)
        self.assertAlmostEqual(official['delta_star'], 2.48856, places=5)
        self.assert_rates(self.schedule('baseline.json', {'warmup': {'steps': 5}})['lr'], BASELINE)

    def test_delta_star_of_the_published_runs(self):
        for model, preset, lr, div, loss0, target, star, places in (
                ('llama-124m', 'muon', 2e-3, 100, 10.95, 3.2, 2.48856, 5),
                ('llama-210m', 'muon', 1e-3, 100, 10.95, 3.2, 1.71401, 5),
                ('llama-124m', 'lion', 1e-3, 100, 10.95, 3.5, 0.38224449, 8),
                ('llama-124m', 'lion', 1e-3, 100, 11.0, 3.2, 0.384188, 6),
                ('llama-124m', 'nsgd', 1e-2, 2, 10.95, 4.2, 3.43569, 5),
                ('llama-124m', 'nsgd', 1e-2, 5, 10.95, 4.3, 2.21557, 5),
                ('llama-210m', 'nsgd', 1e-2, 2, 10.95, 4.2, 3.42220, 5),
                ('llama-124m', 'muon', 1e-3, 100, 10.98, 3.2, 5.51509, 5)):
            with self.subTest(model=model, preset=preset, div=div, loss0=loss0):
                compat = 'official-nsgd.json' if preset == 'nsgd' else 'official.json'
                schedule = {'warmup': {'target_loss': target, 'div': div}}
                report = self.schedule(compat, schedule, model, preset, lr, losses=[loss0, 9.0])
                self.assertAlmostEqual(report['delta_star'], star, places=places)


class PublishedTrainingTest(CliTest):
    def run_published(self, run, sequences=4, micro_batch=4, **schedule):
        """8 updates of normalized SGD with the official switches; the lines of its updates."""
        self.config({'include': str(COMPAT / 'official-nsgd.json'), 'optimizer': {'preset': 'nsgd'},
                     'batch': {'sequences': sequences, 'micro_batch': micro_batch},
                     'schedule': {'warmup': {'target_loss': 1.0, 'delta_star': 0.5, 'div': 4},
                                  **schedule}})
        self.train('--set', f'run.dir={run}')
        return self.metrics(run, 'train')

    def test_first_rate_lag_and_the_loss_of_the_last_micro_batch(self):
        whole = self.run_published('whole')
        self.assertEqual(whole[0]['lr'], 0.01)
        self.assertAlmostEqual(whole[1]['lr'], 0.01 / 4, places=9)
        for before, now in zip(whole, whole[1:]):
            self.assertAlmostEqual(now['delta'], before['loss'] - 1.0, places=12)
        # Updates of two micro-batches: the first one's loss is that of a run of such updates.
        halves = self.run_published('halves', micro_batch=2)
        first = self.run_published('first', sequences=2, micro_batch=2)
        last = halves[0]['loss'] - first[0]['loss'] / 2
        self.assertAlmostEqual(halves[1]['delta'], last - 1.0, places=6)
        self.assertLess(halves[1]['delta'], whole[1]['delta'] - 1)
        mean = self.run_published('mean', micro_batch=2, compat={'loss': 'mean', 'lag': False})
        self.assertAlmostEqual(mean[1]['delta'], mean[1]['loss'] - 1.0, places=12)

    def test_schedule_command_says_what_training_does(self):
        lines = self.run_published('run', compat={'loss': 'mean'})
        (self.folder / 'losses').write_text(json.dumps([line['loss'] for line in lines]))
        report = self.run_cli('schedule', '--config', 'config.json', '--loss0', repr(lines[0]['loss']),
                              '--losses', 'losses', '--json')
        self.assertEqual(report.status, 0, report.err)
        self.assertEqual(json.loads(report.out)['lr'], [line['lr'] for line in lines])

    def test_numpy_order_is_another_order(self):
        orders = {}
        for order in ('own', 'numpy'):
            self.config({'data': {'compat': {'order': order}}})
            self.train('--set', f'run.dir={order}')
            orders[order] = self.metrics(order, 'train')[0]['loss'], self.metrics(order, 'val')[0]
        self.assertNotEqual(orders['own'][0], orders['numpy'][0])
        self.assertNotEqual(orders['own'][1]['loss'], orders['numpy'][1]['loss'])

    def test_momentum_starts_as_the_weights(self):
        """The first update of normalized SGD is then mostly the weights themselves, scaled."""
        norms = {}
        for init in ('zero', 'parameters'):
            self.config({'optimizer': {'preset': 'nsgd', 'lr': 1e-3,
                                       'compat': {'momentum_init': init}}})
            self.train('--set', f'run.dir={init}', '--set', 'run.steps=1')
            norms[init] = (self.checkpoint(1, init) / 'optimizer.safetensors').read_bytes()
        self.assertNotEqual(norms['zero'], norms['parameters'])
