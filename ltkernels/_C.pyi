version: str
compiler: str
built_for_torch: str
cuda_architectures: str
cuda_compiler: str
cpu_instruction_sets: str
cpu_instruction_set: str
