"""Training on the CUDA backend, its kernels executed by the emulator: the CPU's results, resumed exactly."""
import json
import subprocess

from emulated import EmulatedTest

PRESETS = ('adamw', 'muon', 'lion', 'signum', 'nsgd')


class CudaTest(EmulatedTest):
    def test_fp32_equals_the_cpu_for_every_preset(self):
        for preset in PRESETS:
            with self.subTest(preset):
                # Inside of Newton-Schulz the GPU works in fp16.
                self.both({'optimizer': {'preset': preset, 'lr': 0.003, 'clip_norm': 0.5, 'weight_decay': 0.1},
                           'run': {'steps': 6}}, bound=2e-3 if preset == 'muon' else 2e-5)

    def test_bf16_is_near_the_cpu(self):
        self.both({'optimizer': {'preset': 'adamw', 'lr': 0.003}, 'run': {'steps': 6},
                   'precision': {'compute': 'bf16'},
                   'model': {'n_head': 2, 'n_kv_head': 1, 'd_model': 128, 'd_ff': 64}}, bound=1e-2)

    def test_resume_is_exact_and_crosses_devices(self):
        self.assert_resumes_exactly({'optimizer': {'preset': 'muon', 'lr': 0.003}})
        subprocess.run(['rm', '-r', self.checkpoint(4, 'parts')], check=True)
        on_cpu = self.run_cli('train', '--config', 'config.json', '--set', 'run.steps=4', '--device', 'cpu', '--set', 'run.dir=parts')
        self.assertIn('resumed after 2 updates', on_cpu.out + on_cpu.err)

    def test_update_norms_are_those_of_the_cpu(self):
        self.config({'run': {'steps': 3}, 'log': {'update_norms': True}})
        command = ['train', '--config', 'config.json', '--device']
        self.on_emulator(*command, 'cuda', '--set', 'run.dir=on_cuda')
        self.run_cli(*command, 'cpu', '--set', 'run.dir=on_cpu')
        runs = [self.metrics(run, 'update_norms') for run in ('on_cuda', 'on_cpu')]
        self.assertEqual([len(run) for run in runs], [3, 3])
        for on_cuda, on_cpu in zip(*runs):
            for name, value in on_cpu['tensors'].items():
                self.assertAlmostEqual(on_cuda['tensors'][name] / value, 1, delta=1e-3, msg=name)

    def test_without_a_gpu(self):
        self.config({'run': {'steps': 1}})
        nowhere = {'LMO_EMULATOR_NO_DEVICE': '1'}
        asked = self.on_emulator('train', '--config', 'config.json', '--device', 'cuda', status=1,
                                 environment=nowhere)
        self.assertIn('no GPU', asked.err)
        auto = self.on_emulator('train', '--config', 'config.json', '--device', 'auto', environment=nowhere)
        self.assertIn('using the CPU', auto.err)
        fp64 = self.on_emulator('train', '--config', 'config.json', '--device', 'cuda', '--set',
                                'precision.compute=fp64', status=2)
        self.assertIn('fp64', fp64.err)

    def test_attention_by_cudnn_is_refused_where_there_is_none(self):
        self.config({'run': {'steps': 1}, 'model': {'attention': 'cudnn'}})
        command = ['train', '--config', 'config.json', '--device']
        expected = r'^train_gpt: model.attention = "cudnn": .*; expected "own"$'
        asked = self.on_emulator(*command, 'cuda', status=2)
        self.assertRegex(asked.err.strip(), expected)
        self.assertIn('scripts/setup.sh cudnn', asked.err)
        on_cpu = self.run_cli(*command, 'cpu')
        self.assertEqual(on_cpu.status, 2)
        self.assertRegex(on_cpu.err.strip(), expected)
        # A plan for a GPU that is not here needs none.
        plan = self.run_cli('plan', '--config', 'config.json', '--device', 'cuda')
        self.assertEqual(plan.status, 0, plan.err)

    def test_dependent_launch_is_refused_where_there_is_none(self):
        self.config({'run': {'steps': 1, 'dependent_launch': True}})
        expected = r'^train_gpt: run.dependent_launch = true needs a GPU of compute capability 9.0, .*; expected false$'
        command = ['train', '--config', 'config.json', '--device']
        older = {'LMO_EMULATOR_CAPABILITY': '89'}
        for result in (self.on_emulator(*command, 'cuda', status=2, environment=older), self.run_cli(*command, 'cpu')):
            self.assertEqual(result.status, 2)
            self.assertRegex(result.err.strip(), expected)
        off = ('--set', 'run.dependent_launch=false')
        self.on_emulator(*command, 'cuda', *off, environment=older)
        line = json.loads(self.on_emulator('bench', *command, 'cuda', *off, '--json', '--steps', '1',
                                           environment=older).out.splitlines()[-1])
        self.assertIsNone(line['launches'])

    def test_parts_of_a_step_between_moments_of_the_device(self):
        self.config({'batch': {'sequences': 4, 'micro_batch': 2}})
        for graphs in ('true', 'false'):
            out = self.on_emulator('bench', 'train', '--config', 'config.json', '--device', 'cuda', '--json', '--steps', '2',
                                   '--warmup', '1', '--set', f'run.graphs={graphs}').out
            lines = [json.loads(line) for line in out.splitlines()]
            whole = lines[-1]
            parts = {line['what']: line for line in lines}
            self.assertEqual(whole['graphs'], graphs == 'true')
            # Whole steps are launched in both ways; the speed is that of the run's own.
            self.assertFalse(whole['dependent_launch'])
            self.assertEqual(whole['launches']['plain_ms'], whole['ms'])
            self.assertGreater(whole['launches']['dependent_ms'], 0)
            names = ('gemm', 'attention', 'classifier', 'elementwise', 'optimizer', 'data', 'other')
            self.assertAlmostEqual(sum(whole[f'{name}_ms'] for name in names) / whole['phases_ms'], 1, delta=0.03)
            self.assertGreaterEqual(min(whole[f'{name}_ms'] for name in names), 0)
            self.assertLess(whole['other_ms'], 0.2 * whole['phases_ms'])
            self.assertAlmostEqual(whole['phases_share'], whole['phases_ms'] / whole['ms'])
            # Two micro-batches; the copies are tokens and targets of each, the rate in, loss and norm out.
            self.assertEqual((parts['train.attention']['calls'], parts['train.data']['calls']), (2 * 2 * 2, 2 * 2 + 3))
            # The emulator gives exactly what it is asked for.
            self.assertAlmostEqual(whole['peak_memory_bytes'] / whole['planned_bytes'], 1, delta=0.03)
