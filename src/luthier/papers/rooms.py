"""What each room of the catalogue is about, in one line."""

ABOUT = {
    "prompts": "Soft prompts and prefixes on language models, and the state-space equivalent",
    "weights": "Low-rank and other weight updates, scaling, adapters, and their automatic placement",
    "frugal": "Sparse and selective tuning, side networks, memory, compression and speed",
    "together": "Many tasks and many adaptations: fusion, routing, hypernetworks, merging, arithmetic",
    "senses": "Vision, vision-language, 3-D, audio, video and time-series adaptation",
    "signals": "Training objectives, data selection, preference and reward learning",
    "choose": "Comparison, transfer estimation, and the instruments that look inside a tuned model",
    "reinforce": "Reinforcement fine-tuning with verifiable or learned rewards, and control policies",
    "lifelong": "Continual learning",
    "clients": "Federated tuning, differential privacy, unlearning, security audits",
    "words": "Prompt text, demonstrations, decoding-time methods and few-shot pipelines",
    "fields": "Task packs and whole systems in a domain",
}
