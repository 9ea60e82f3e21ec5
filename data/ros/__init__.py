"""ROS 2 without a ROS installation: messages, pixels, DDS and Zenoh, bags."""
