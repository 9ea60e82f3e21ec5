"""Start `rtseg drive` beside ROS 2 nodes, and restart it whenever it ends.

ros2 launch ros2_drive.launch.py image:=/camera/image_raw model:=csfcn_nano_360x480_fp32.onnx
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess
from launch.substitutions import EnvironmentVariable, LaunchConfiguration

SCHEME = LaunchConfiguration("scheme")


def generate_launch_description():
    return LaunchDescription(
        [
            DeclareLaunchArgument("image", default_value="/camera/image_raw"),
            DeclareLaunchArgument("out", default_value="/rtseg"),
            DeclareLaunchArgument("model", default_value="csfcn_nano"),
            DeclareLaunchArgument("scheme", default_value="ros2", choices=["ros2", "zenoh"]),
            ExecuteProcess(
                cmd=[
                    *(EnvironmentVariable("RTSEG", default_value="rtseg"), "drive"),
                    [SCHEME, ":", LaunchConfiguration("image")],
                    *("--model", LaunchConfiguration("model"), "--max-age", "150"),
                    *("--out", [SCHEME, ":", LaunchConfiguration("out")]),
                ],
                output="screen",
                respawn=True,
                respawn_delay=1.0,
            ),
        ]
    )
