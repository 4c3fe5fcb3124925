"""Training on the CUDA backend, its kernels executed by the emulator: the CPU's results, resumed exactly."""
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
        self.config({'optimizer': {'preset': 'muon', 'lr': 0.003}, 'checkpoint': {'every': 2, 'keep': 0}})
        command = ['train', '--config', 'config.json', '--set', 'run.steps=4']
        on_cuda = [*command, '--device', 'cuda', '--set']
        for run in ('whole', 'parts'):
            self.on_emulator(*on_cuda, f'run.dir={run}')
        subprocess.run(['rm', '-r', self.checkpoint(4, 'parts')], check=True)
        self.on_emulator(*on_cuda, 'run.dir=parts', environment={'LMO_EMULATOR_ORDER': '7'})
        for name in ('model.safetensors', 'optimizer.safetensors'):
            self.assertEqual((self.checkpoint(4, 'whole') / name).read_bytes(),
                             (self.checkpoint(4, 'parts') / name).read_bytes(), name)
        subprocess.run(['rm', '-r', self.checkpoint(4, 'parts')], check=True)
        on_cpu = self.run_cli(*command, '--device', 'cpu', '--set', 'run.dir=parts')
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
