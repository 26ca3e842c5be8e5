"""How images are attacked: threat models, the attacks of training, the networks they run on."""
