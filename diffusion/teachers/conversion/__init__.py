"""Published teachers, read from their authors' files into what this suite stores.

``published`` lists the checkpoints, ``edm`` reads NVlabs/edm's network pickles, ``adm`` the state dictionaries of
openai/guided-diffusion and openai/consistency_models, ``sit`` those of willisma/SiT. No code of a file is executed.
"""
