"""Parts of an evaluation, each a question asked of a model: is it faithful, like patients, a copy, of use?"""
