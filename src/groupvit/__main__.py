from groupvit.cli import main

main()
